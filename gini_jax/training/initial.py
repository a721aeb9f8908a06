"""The state before the first step: initial values, PyTorch weights, or another run's weights."""

from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gini_jax.config import model_settings
from gini_jax.data.source import Dataset
from gini_jax.errors import InputError
from gini_jax.models import from_torch, read_torch_file
from gini_jax.storage import is_remote, storage_path
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.state import Experiment, TrainState, init_state


def start_state(experiment: Experiment, dataset: Dataset) -> TrainState:
    """The state before the first step, with the weights of `config.model.init` if it names any.

    Raises:
        InputError: the weights do not fit the network, or cannot be read.
        RunError: `model.init` names a run whose checkpoint cannot be read.
    """
    state, model = init_state(experiment), experiment.config.model
    if not model.init:
        return state
    path = storage_path("model.init", model.init)
    if path.is_dir():
        weights = weights_of_run(path, jax.device_get(state.variables))
    else:
        settings = model_settings(experiment.config)
        if is_remote(path):
            raise InputError(
                f"model.init={model.init}: a bucket may hold a run to start from, not a file; copy "
                "the file to this machine"
            )
        state_dict = read_torch_file(model.init)
        weights = from_torch(model.name, state_dict, dataset.num_classes, **settings)
    average = None if state.average is None else weights
    return state.replace(**weights, average=average)  # type: ignore[attr-defined]


def weights_of_run(workdir: Path, initial: dict[str, Any]) -> dict[str, Any]:
    """The variables of a run's best checkpoint, for a network of the same shapes.

    Args:
        workdir: the run's folder.
        initial: the network's initial variables. Its head keeps them if the run had another number
            of classes, and a printed line says so.

    Raises:
        InputError: the folder holds no run, or another network's.
        RunError: its checkpoint cannot be read.
    """
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"model.init={str(workdir)!r} is a folder without a run; give the --workdir of one, or "
            "a .safetensors or .pth file"
        )
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = flatten_dict(checkpoints.variables(checkpoints.best_step()), sep="/")
    checkpoints.close()
    wanted = flatten_dict(initial, sep="/")
    differing = [
        path
        for path in sorted(set(found) | set(wanted))
        if path not in found or path not in wanted or found[path].shape != wanted[path].shape
    ]
    if other := [path for path in differing if "/head/" not in path]:
        raise InputError(
            f"the run in {str(workdir)!r} has another network: {len(other)} arrays are missing, "
            f"unexpected or of another shape, such as {other[0]}; set --config.model.* to the "
            "values of that run"
        )
    if differing:
        print(f"{workdir} has another number of classes; the head keeps its initial values")
    kept = {path: (wanted if path in differing else found)[path] for path in wanted}
    return unflatten_dict(kept, sep="/")
