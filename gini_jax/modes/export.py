"""Exports a trained network: weights under PyTorch's names, StableHLO, or ONNX."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.registry import Registry
from gini_jax.data.augment import statistics
from gini_jax.data.images import stored_size
from gini_jax.errors import InputError
from gini_jax.models.frozen import Frozen
from gini_jax.models.registry import MODELS
from gini_jax.modes.formats import Format, Kind, to_safetensors, to_stablehlo, to_torch_file
from gini_jax.storage import read_json, write
from gini_jax.trained import Trained, load
from gini_jax.training.workdir import make_workdir


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
    of_weights = found.kind == "weights"
    if of_weights and getattr(trained.model, "head", "") == "cosine":
        raise InputError(
            f"--format={format}: the network has a cosine head, which PyTorch's networks lack, so "
            "its logits would differ there; export it with --format=stablehlo"
        )
    folder = workdir / "export"
    make_workdir(folder, "the export is written there; copy the run to a folder of your own")
    path = folder / found.file
    write(path, found.data(trained))
    notes = _unlike_the_original(trained) if of_weights else []
    tested = _tested(workdir, trained.step)
    card = model_card(trained, path.name, tested, notes, found.kind)
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
    network, model = MODELS.find(trained.config.model.name), trained.model
    notes = []
    if isinstance(model, Frozen) and model.hidden:
        layers = "Sequential(Linear, ReLU, Linear) with the weights hidden.* and head.*"
        notes.append(f"in the place of {network.library}'s classifier stands {layers}")
    body = model.body if isinstance(model, Frozen) else model
    own = {key: getattr(body, key) for key in network.original}
    return notes + [
        f"this network has {key}={own[key]}, {network.library}'s has {usual}: change it there, or "
        "the logits differ"
        for key, usual in network.original.items()
        if own[key] != usual
    ]


def model_card(
    trained: Trained,
    file: str,
    metrics: dict[str, Any],
    notes: Sequence[str] = (),
    kind: Kind = "weights",
) -> str:
    """The model card: the network, its input, its training data and its test metrics.

    Args:
        trained: the network.
        file: the file's name.
        metrics: the test metrics.
        notes: further facts that the reader must know.
        kind: what the file holds; see `Format`.
    """
    config = trained.config
    rows = "\n".join(f"| {key} | {value:.4f} |" for key, value in metrics.items())
    rows = rows or "| not tested | - |"
    said = "".join(f"- Note: {note}.\n" for note in notes)
    return f"""# {config.name}: {config.model.name} trained with {config.objective}

- File: `{file}`, checkpoint of step {trained.step}.
- Network: {config.model.name}, {len(trained.class_names)} classes.
- Input: {_input(trained, kind)}
- Output: {_OUTPUT[kind].format(len(trained.class_names))}
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


_OUTPUT = {
    "whole": "probabilities, `[N, {}]`.",
    "network": "logits, `[N, {}]`; their softmax gives the probabilities.",
    "weights": "logits, `[N, {}]`; their softmax gives the probabilities.",
}


def _input(trained: Trained, kind: Kind) -> str:
    """The card's text on how the caller prepares an image for the network."""
    size, (mean, std) = trained.image_size, statistics(trained.config.dataset)
    axes = f"[N, 3, {size}, {size}]" if kind == "weights" else f"[N, {size}, {size}, 3]"
    exact = "" if trained.config.dataset.image_size else "; an image of that size stays as it is"
    rest = f"Subtract {mean} by channel, and divide by {std}."
    if mean == (0.0, 0.0, 0.0) and std == (1.0, 1.0, 1.0):
        rest = "No further normalisation is needed."
    elif kind == "network":
        rest = f"The file subtracts {mean} by channel and divides by {std}: do not repeat it."
    pixels = "Divide by 255, so that pixels lie in [0, 1]."
    if kind == "whole":
        pixels, rest = "Pixels stay 0 to 255;", "the file scales and normalises them."
    number = "uint8" if kind == "whole" else "float32"
    return f"""RGB, `{axes}` {number}. Of an image in any size: turn it as its EXIF data
  say, resize its shorter side to {stored_size(size)} (bilinear, with Pillow's smoothing), take the
  {size} x {size} pixels in its centre{exact}. {pixels}
  {rest}"""


FORMATS = Registry(
    "format",
    {
        "safetensors": Format("model.safetensors", to_safetensors, "weights"),
        "torch": Format("model.pth", to_torch_file, "weights", "torch"),
        "stablehlo": Format("model.stablehlo", to_stablehlo),
        "onnx": "gini_jax.modes.onnx:WHOLE",
        "onnx_logits": "gini_jax.modes.onnx:LOGITS",
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
