"""The state before the first step: initial values, PyTorch weights, or another run's weights."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from gini_jax.errors import InputError, RunError
from gini_jax.models import read_torch_file
from gini_jax.models.frozen import body_of, has_body, whole_of, with_body
from gini_jax.models.registry import body_settings
from gini_jax.models.torch_files import installed_file
from gini_jax.models.torch_weights import converted
from gini_jax.storage import is_remote, reading, run_path
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.progress import Progress
from gini_jax.training.state import Experiment, TrainState, init_state


def start_state(experiment: Experiment) -> TrainState:
    """The state before the first step, with the weights of `config.model.init` if it names any.

    Raises:
        InputError: the weights do not fit the network, or cannot be read.
        RunError: `model.init` names a run whose checkpoint cannot be read.
    """
    state = init_state(experiment)
    if not experiment.config.model.init:
        return state
    # `check_weights` has printed what there is to say.
    weights = _given_weights(experiment, jax.device_get(state.variables), _silent)
    changed = state.replace(**weights)  # type: ignore[attr-defined]
    return changed if state.average is None else changed.replace(average=changed.variables)


def resumed_or_new(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """State and progress of the newest checkpoint that can be read, or those of a new run."""
    restored = checkpoints.restore_newest(lambda: init_state(experiment))
    if restored is None:
        return start_state(experiment), Progress()
    state, progress = restored
    sums = progress["epoch_sums"]  # up to version 0.2, gradient ratios were named shares
    sums = {re.sub("^share_", "gradient_ratio_", name): value for name, value in sums.items()}
    return state, Progress(**progress | {"epoch_sums": sums})


def check_init(config: ConfigDict) -> None:
    """Refuses missing initial weights, before any long work.

    Raises:
        InputError: `model.init` is not a file, a run's folder or an installed package.
    """
    if not config.model.init:
        return
    path = _place(config.model.init)
    with reading(path):
        found = path.exists() and (path.is_file() or (path / "config.json").exists())
    if not found:
        raise _no_run(path)


def check_weights(experiment: Experiment) -> None:
    """Refuses initial weights that do not fit the network, before any long work.

    If the weights lack a fitting head, it prints that the head keeps its initial values.

    Raises:
        InputError: the weights do not fit the network, or cannot be read.
        RunError: `model.init` names a run whose checkpoint cannot be read.
    """
    if not (init := experiment.config.model.init):
        return
    shapes = jax.eval_shape(lambda: init_state(experiment)).variables
    say = _silent if experiment.config.model.frozen else print  # which does not use the head
    found = jax.tree.leaves(_given_weights(experiment, shapes, say))
    if experiment.config.model.frozen:
        return
    lacking = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in found)
    if lacking and jax.process_index() == 0:
        print(f"{init} has another number of classes; the head keeps its initial values")


def untrained_variables(experiment: Experiment) -> dict[str, Any] | None:
    """The variables before the first step; None if `model.init` is no longer there."""
    try:
        return start_state(experiment).evaluated
    except (InputError, RunError) as error:
        print(f"warning: the untrained network is not evaluated ({error})")
        return None


def _silent(text: str) -> None:
    """Says nothing."""


def _given_weights(
    experiment: Experiment, initial: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The variables that `config.model.init` names, of the network or of its frozen body.

    Args:
        experiment: the fixed parts of the run.
        initial: the network's initial variables, or their shapes.
        say: is given each line of text.
    """
    model = experiment.config.model
    path = _place(model.init)
    with reading(path):
        is_run = path.is_dir()
    if is_run:
        return weights_of_run(path, initial)
    if is_remote(path):
        raise InputError(
            f"model.init={model.init}: only a run can be read from a bucket, not a file; copy "
            "the file to this machine"
        )
    state_dict, settings = read_torch_file(path), body_settings(experiment.config)
    weights = converted(model.name, state_dict, experiment.num_classes, settings, say)
    return with_body(initial, weights)


def _place(init: str) -> Path:
    """The file or the folder that `model.init` names."""
    return installed_file(init) if init.startswith("pip:") else run_path("model.init", init)


def weights_of_run(workdir: Path, initial: dict[str, Any]) -> dict[str, Any]:
    """The variables of a run's best checkpoint, for a network of the same shapes.

    Args:
        workdir: the run's folder.
        initial: the network's initial variables. Its head keeps them if the run had another number
            of classes. A frozen body takes those of a whole network, and the other way round.

    Raises:
        InputError: the folder holds no run, or a run of another network.
        RunError: its checkpoint cannot be read.
    """
    if not (workdir / "config.json").is_file():
        raise _no_run(workdir)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        variables = checkpoints.variables(checkpoints.best_step())
    head = "/(head|Classifier_[0-9]+)/"
    if has_body(variables) and has_body(initial):
        found, wanted, head = variables, initial, "/(head|hidden|Classifier_[0-9]+)/"
    else:
        found, wanted = whole_of(variables), body_of(initial)
    found, wanted = (flatten_dict(tree, sep="/") for tree in (found, wanted))
    differing = [
        path
        for path in sorted(set(found) | set(wanted))
        if path not in found or path not in wanted or found[path].shape != wanted[path].shape
    ]
    if other := [path for path in differing if not re.search(head, path)]:
        raise InputError(
            f"the run in {str(workdir)!r} has another network: {len(other)} arrays are missing, "
            f"unexpected or of another shape, such as {other[0]}; set --config.model.* to the "
            "values of that run"
        )
    kept = {path: (wanted if path in differing else found)[path] for path in wanted}
    weights = unflatten_dict(kept, sep="/")
    return with_body(weights if has_body(weights) else initial, body_of(weights))


def _no_run(path: Path) -> InputError:
    return InputError(
        f"model.init={str(path)!r} is no file and no folder of a run; give the --workdir of a run, "
        "or a .safetensors or .pth file"
    )
