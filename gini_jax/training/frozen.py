"""Features of a frozen network: taken once, kept on disk, trained on in the place of images."""

import contextlib
import hashlib
import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

from gini_jax.config.registry import flattened
from gini_jax.data.augment import augment_batch, augmentations_of, centre_crop
from gini_jax.data.cache import exclusive_lock
from gini_jax.data.source import Dataset, Split
from gini_jax.devices import AXIS, map_over_devices, num_devices, replicate, shard
from gini_jax.errors import InputError
from gini_jax.evals.extract import forward_pass, padded_batches
from gini_jax.losses.term import TermContext
from gini_jax.losses.terms import needs_of, spec_of, weight_of
from gini_jax.models.frozen import Frozen, body_of
from gini_jax.models.registry import body_settings
from gini_jax.storage import default_folder
from gini_jax.training.state import Experiment
from gini_jax.version import __version__

_not_written: dict[Path, np.ndarray] = {}  # features, of a folder that cannot be written to
Devices = Sequence[jax.Device] | None


def check_frozen(config: ConfigDict) -> None:
    """Refuses settings with which a frozen network cannot be trained.

    Raises:
        InputError: names the setting, the rule and a fix.
    """
    if not config.model.frozen:
        return
    if not config.model.init:
        raise InputError(
            "model.frozen=True keeps the network's weights, but model.init names none; set "
            "--config.model.init to a PyTorch file, a run's folder or pip:PACKAGE, or "
            "--config.model.frozen=False",
            fix=("model.frozen", False),
        )
    if tuple(config.loss.layers) != ("pooled",):
        raise InputError(
            f"loss.layers={tuple(config.loss.layers)}: with model.frozen=True only the features "
            "`pooled` behind the hidden layer can change; set --config.loss.layers=\"('pooled',)\"",
            fix=("loss.layers", ("pooled",)),
        )
    for key in ("mixup", "cutmix"):
        if config.augment[key]:
            raise InputError(
                f"augment.{key}={config.augment[key]} mixes images, but with model.frozen=True "
                f"training sees their features; set --config.augment.{key}=0",
                fix=(f"augment.{key}", 0.0),
            )
    sections = {k: x for k, x in config.loss.terms.items() if weight_of(x)}
    context = TermContext(superclasses=(0, 0))
    on_features = [
        name
        for name, section in sections.items()
        if hasattr(spec_of(name, section).create(context), "layers")
    ]
    if config.model.views and not any(flattened(config.augment).values()):
        raise InputError(
            f"model.views={config.model.views} keeps augmented views, but config.augment changes "
            "nothing; set --config.augment.flip=True, or --config.model.views=0",
            fix=("model.views", 0),
        )
    if "views" in needs_of(sections) and not config.model.views:
        raise InputError(
            f"{config.objective} compares two views of an image, but model.views=0 keeps one; set "
            "--config.model.views=4 and --config.augment.flip=True",
        )
    if on_features and not config.model.hidden:
        raise InputError(
            f"loss.terms.{on_features[0]} acts on features, but with model.frozen=True and "
            "model.hidden=0 none can change; set --config.model.hidden=256",
            fix=("model.hidden", 256),
        )


def as_seen(
    experiment: Experiment, dataset: Dataset, variables: Any, devices: Devices = None
) -> Dataset:
    """A data set as training sees it: with a frozen network, features in the place of images.

    Features `[N, V, C]`, float32, hold one view of each image, that of evaluation, and in the
    training split `model.views` augmented ones more. They are kept on disk, under a digest of the
    images, the network's variables and the preprocessing.

    Args:
        experiment: the fixed parts of the run.
        dataset: the images, or their shapes.
        variables: of the network.
        devices: to compute on; all by default.

    Returns:
        The data set itself, if the network is not frozen.
    """
    if not isinstance(experiment.model, Frozen):
        return dataset
    views, width = experiment.stored_shape
    splits = {}
    body: _Body | None = None
    for name, split in dataset.splits.items():
        count = views if name == "train" else 1
        if isinstance(split.images, jax.ShapeDtypeStruct):
            shape = split.images.shape[0], count, width
            splits[name] = Split(jax.ShapeDtypeStruct(shape, jnp.float32), split.labels)
            continue
        body = body or _Body(experiment, variables, devices)
        splits[name] = Split(body.features(name, split, count), split.labels)
    return replace(dataset, splits=splits)


class _Body:
    """A frozen network that computes the features of splits, or finds them on disk."""

    def __init__(self, experiment: Experiment, variables: Any, devices: Devices):
        assert isinstance(experiment.model, Frozen)
        self._config, self._devices = experiment.config, devices
        self._variables, self._network = body_of(variables), experiment.model.body
        self._size, self._width = experiment.image_size, experiment.stored_shape[1]
        self._steps = [self._step(augmented) for augmented in (False, True)]
        self._known = _digest_of_network(experiment, self._variables)

    def features(self, name: str, split: Split, views: int) -> Float[np.ndarray, "N V C"]:
        """The features of a split, mapped from a file."""
        digest = self._known.copy()
        for start in range(0, len(split.labels), 1024):
            digest.update(np.ascontiguousarray(split.images[start : start + 1024]).data)
        if views > 1:
            digest.update(f"{views} views: {flattened(self._config.augment)}".encode())
            for augmentation, _ in augmentations_of(self._config.augment).values():
                digest.update(_source_of(augmentation.change))
        path = default_folder() / "features" / f"{digest.hexdigest()}.npy"
        shape = (len(split.labels), views, self._width)
        with _alone(path):
            found = _not_written.get(path, _read(path, shape))
            missing = multihost_utils.process_allgather(np.array(found is None)).any()
            if not missing and found is not None:
                return found
            computed = self._computed(name, split, views)
            _write(path, computed)
        return computed

    def _computed(self, name: str, split: Split, views: int) -> Float[np.ndarray, "N V C"]:
        count = num_devices(self._devices)
        batch = -(-self._config.eval_batch_size // count) * count
        variables = replicate(jax.device_get(self._variables), self._devices, donated=False)
        result = np.zeros((len(split.labels), views, self._width), np.float32)
        title, quiet = f"features of {name}", jax.process_index() > 0 or len(split.labels) < batch
        with tqdm(total=result[..., 0].size, unit=" images", desc=title, disable=quiet) as bar:
            for view in range(views):
                step, start = self._steps[view > 0], 0
                for images, kept in padded_batches(split, batch, count):
                    index = shard(start + np.arange(batch, dtype=np.uint32), count)
                    found = step(variables, images, index, np.uint32(view))
                    result[start : start + kept, view] = np.asarray(found)[:kept]
                    start += kept
                    bar.update(kept)
        return result

    def _step(self, augmented: bool) -> Any:
        """From images to the features of their centres, or of an augmented view of each."""
        network, config, size = self._network, self._config, self._size

        def step(variables: Any, images: Any, index: Any, view: Any) -> Any:
            seen = centre_crop(images, size)
            if augmented:
                key = jax.random.fold_in(jax.random.key(0), view)  # every seed has the same views
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
                seen = augment_batch(config.augment, keys, images, size)
            _, features = forward_pass(network, config.dataset, variables, seen)
            return lax.all_gather(features["pooled"].astype(jnp.float32), AXIS, tiled=True)

        return map_over_devices(step, self._devices, in_axes=(None, 0, 0, None), donate=False)


def _digest_of_network(experiment: Experiment, variables: Any) -> Any:
    """A hash of a network, its variables and the preprocessing, to be continued."""
    config = experiment.config
    seen = experiment.image_size, config.dataset.mean, config.dataset.std
    digest = hashlib.blake2b(digest_size=16)
    network = {**body_settings(config), "name": config.model.name}
    digest.update(repr((__version__, sorted(network.items()), seen)).encode())
    digest.update(_source_of(type(experiment.model.body)))  # type: ignore[attr-defined]
    for path, value in jax.tree_util.tree_leaves_with_path(jax.device_get(variables)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest


def _source_of(part: Any) -> bytes:
    """The file that a class or a function comes from; its name, if there is none."""
    with contextlib.suppress(OSError, TypeError):
        return Path(inspect.getsourcefile(part) or "").read_bytes()
    return repr(part).encode()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While one process computes features, others of the machine that need them wait."""
    with contextlib.ExitStack() as stack:
        if jax.process_count() == 1:  # several compute together
            with contextlib.suppress(OSError):  # a folder that cannot be written to
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(path.parent, f"computes {path.stem}"))
        yield


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Features from a file; None if it is missing, or holds something else."""
    with contextlib.suppress(OSError, ValueError):
        found: np.ndarray = np.load(path, mmap_mode="r")
        return found if found.shape == shape and found.dtype == np.float32 else None
    return None


def _write(path: Path, features: np.ndarray) -> None:
    """Writes features, to a file that is renamed when it is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, features)
        os.replace(file.name, path)
    except OSError as error:
        _not_written[path] = features
        print(f"the features are not kept in {path.parent} ({error}); a next run computes them")
