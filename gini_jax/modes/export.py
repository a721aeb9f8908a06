"""Exports a trained network: safetensors or a torch file under PyTorch's names, or StableHLO."""

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from ml_collections import ConfigDict

from gini_jax.config.registry import Registry
from gini_jax.data.augment import statistics
from gini_jax.data.images import stored_size
from gini_jax.errors import InputError, first_line
from gini_jax.evals.extract import forward_pass
from gini_jax.models import to_torch
from gini_jax.models.registry import MODELS
from gini_jax.platform import tracing_for
from gini_jax.storage import read_json, write
from gini_jax.trained import Trained, load
from gini_jax.training.workdir import make_workdir


class Format(NamedTuple):
    """A format of exported networks.

    Attributes:
        file: its name.
        data: a function from a trained network to the file's contents.
        of_weights: whether the file holds only weights, under PyTorch's names.
        needs: the library that it needs; "" for none.
    """

    file: str
    data: Callable[[Trained], bytes]
    of_weights: bool = False
    needs: str = ""


def main(
    config: ConfigDict, workdir: Path, *, format: str = "safetensors", step: int | None = None
) -> Path:
    """Writes `export/model.*` and its model card, `export/model.*.md`.

    `export/README.md` holds the cards of all files that are there.

    Args:
        config: not used; the run brings its own.
        workdir: the run's folder.
        format: one of `FORMATS`, or a plugin.
        step: of the checkpoint; the best by default.

    Returns:
        The path of the network's file.

    Raises:
        InputError: the format is unknown, or the workdir holds no run.
    """
    del config
    found = FORMATS.find(format)
    if found.needs and importlib.util.find_spec(found.needs) is None:
        raise InputError(f"--format={format} needs {found.needs}: pip install {found.needs}")
    trained = load(workdir, step)
    if found.of_weights and getattr(trained.model, "head", "") == "cosine":
        raise InputError(
            f"--format={format}: the network has a cosine head, which PyTorch's networks lack, so "
            "its logits would differ there; export it with --format=stablehlo"
        )
    folder = workdir / "export"
    make_workdir(folder, "the export is written there; copy the run to a folder of your own")
    path = folder / found.file
    write(path, found.data(trained))
    notes = _unlike_the_original(trained) if found.of_weights else []
    tested = _tested(workdir, trained.step)
    card = model_card(trained, path.name, tested, notes, normalises=not found.of_weights)
    write(path.with_name(path.name + ".md"), card)
    cards = [
        x.with_name(x.name + ".md") for x in sorted(folder.glob("model.*")) if x.suffix != ".md"
    ]
    whole = "\n".join(x.read_text() for x in cards if x.exists())
    write(folder / "README.md", whole)
    print(f"written to {path}, with a model card next to it")
    for note in notes:
        print(f"note: {note}")
    return path


def _tested(workdir: Path, step: int) -> dict[str, Any]:
    """The metrics of result.json, if they are those of this step."""
    path = workdir / "result.json"
    result = read_json(path) if path.exists() else {}
    if not result or result["best_epoch"] * result["steps"] != step * result["epochs"]:
        return {}
    return {key: value for key, value in result.items() if key[:5] == "test_" and value is not None}


def _unlike_the_original(trained: Trained) -> list[str]:
    """Settings to change in PyTorch's network, because the weights do not record them."""
    network = MODELS.find(trained.config.model.name)
    own = {key: getattr(trained.model, key) for key in network.original}
    return [
        f"this network has {key}={own[key]}, {network.library}'s has {usual}: change it there, or "
        "the logits differ"
        for key, usual in network.original.items()
        if own[key] != usual
    ]


def to_stablehlo(trained: Trained) -> bytes:
    """The network as a portable program, from images `[N, H, W, 3]` in `[0, 1]` to logits.

    The batch size is symbolic; `jax.export.deserialize(data).call(images)` runs it.

    Raises:
        InputError: the network needs the number of images as a constant.
    """

    @jax.jit
    def predict(images: jax.Array) -> jax.Array:
        config = trained.config.dataset
        return forward_pass(trained.model, config, trained.variables, images)[0]

    (batch,) = jax.export.symbolic_shape("batch")
    size = trained.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    try:
        with tracing_for("cpu"):  # so that every machine exports the same program
            program = jax.export.export(predict, platforms=("cpu", "cuda", "tpu"))(images)
    except TypeError as error:
        raise InputError(
            f"--format=stablehlo: model.name={trained.config.model.name!r} needs the number of "
            f"images as a Python integer, but the program accepts any number "
            f"({first_line(error)}); in its module write images.shape[0] instead of len(images)"
        ) from error
    return bytes(program.serialize())


def to_safetensors(trained: Trained) -> bytes:
    """The weights under PyTorch's names, as a safetensors file."""
    from safetensors.numpy import save

    return bytes(save(_weights(trained)))


def to_torch_file(trained: Trained) -> bytes:
    """The weights under PyTorch's names, as `torch.save` writes them."""
    import torch

    file = io.BytesIO()
    torch.save({name: torch.tensor(value) for name, value in _weights(trained).items()}, file)
    return file.getvalue()


def _weights(trained: Trained) -> dict[str, Any]:
    return to_torch(trained.config.model.name, jax.device_get(trained.variables))


def model_card(
    trained: Trained,
    file: str,
    metrics: dict[str, Any],
    notes: Sequence[str] = (),
    normalises: bool = False,
) -> str:
    """The model card: the network, its input, its training data and its test metrics.

    Args:
        trained: the network.
        file: the file's name.
        metrics: the test metrics.
        notes: further facts that the reader must know.
        normalises: whether the file subtracts the mean and divides by the standard deviation.
    """
    config = trained.config
    rows = "\n".join(f"| {key} | {value:.4f} |" for key, value in metrics.items())
    rows = rows or "| not tested | - |"
    said = "".join(f"- Note: {note}.\n" for note in notes)
    return f"""# {config.name}: {config.model.name} trained with {config.objective}

- File: `{file}`, checkpoint of step {trained.step}.
- Network: {config.model.name}, {len(trained.class_names)} classes.
- Input: {_input(trained, normalises)}
- Output: logits, `[N, {len(trained.class_names)}]`; their softmax gives the probabilities.
{said}- Data: {config.dataset.name}.
- Training: {config.num_epochs} epochs, batch {config.batch_size or "8 to 64"},
  seed {config.seed}; terms
  {config.loss.terms.to_dict()} on {", ".join(config.loss.layers)}.
- Licence: (to be filled in by whoever publishes this file)

| metric | value |
| --- | --- |
{rows}

Classes, in the order of the logits: {", ".join(trained.class_names)}.

Trained with gini_jax, the discriminability-enforcing loss (arXiv 2202.07073) in JAX.
"""


def _input(trained: Trained, normalises: bool) -> str:
    """The card's text on how the caller prepares an image for the network."""
    size, (mean, std) = trained.image_size, statistics(trained.config.dataset)
    axes = f"[N, {size}, {size}, 3]" if normalises else f"[N, 3, {size}, {size}]"
    exact = "" if trained.config.dataset.image_size else "; an image of that size stays as it is"
    rest = f"Subtract {mean} by channel, and divide by {std}."
    if mean == (0.0, 0.0, 0.0) and std == (1.0, 1.0, 1.0):
        rest = "No further normalisation is needed."
    elif normalises:
        rest = f"The file subtracts {mean} by channel and divides by {std}: do not repeat it."
    return f"""RGB, `{axes}` float32. Of an image in any size: turn it as its EXIF data
  say, resize its shorter side to {stored_size(size)} (bilinear, with Pillow's smoothing), take the
  {size} x {size} pixels in its centre{exact}. Divide by 255, so that pixels lie in [0, 1].
  {rest}"""


FORMATS = Registry(
    "format",
    {
        "safetensors": Format("model.safetensors", to_safetensors, of_weights=True),
        "torch": Format("model.pth", to_torch_file, of_weights=True, needs="torch"),
        "stablehlo": Format("model.stablehlo", to_stablehlo),
    },
    lambda part: isinstance(part, Format) or callable(part),
    "a Format, or a function from a trained network to bytes",
    lambda part: part if isinstance(part, Format) else Format(f"model.{part.__name__}", part),
)
FLAGS: dict[str, Any] = {
    "format": ("safetensors", str, f"One of {', '.join(FORMATS)}, or a plugin."),
    "step": (None, int, "Step of the checkpoint; the best by default."),
}
USES: tuple[str, ...] = ()
