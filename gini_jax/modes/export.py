"""Exports a trained network: safetensors or a torch file under PyTorch's names, or StableHLO."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from ml_collections import ConfigDict

from gini_jax.data.augment import standardize, statistics
from gini_jax.errors import InputError, unknown_name
from gini_jax.models import to_torch
from gini_jax.storage import write
from gini_jax.target import tracing_for
from gini_jax.trained import Trained, load
from gini_jax.training.workdir import make_workdir

FORMATS = ("safetensors", "torch", "stablehlo")
FLAGS: dict[str, Any] = {
    "format": ("safetensors", str, f"One of {', '.join(FORMATS)}."),
    "step": (None, int, "Step of the checkpoint; the best by default."),
}
USES: tuple[str, ...] = ()


def main(
    config: ConfigDict, workdir: Path, *, format: str = "safetensors", step: int | None = None
) -> Path:
    """Writes `export/model.*` and a model card, `export/README.md`.

    Args:
        config: not used; the run brings its own.
        workdir: of the run.
        format: one of `FORMATS`.
        step: of the checkpoint; the best by default.

    Returns:
        The path of the network's file.

    Raises:
        InputError: the format is unknown, or the workdir holds no run.
    """
    del config
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format == "torch" and importlib.util.find_spec("torch") is None:
        raise InputError("--format=torch needs torch: pip install torch")
    trained = load(workdir, step)
    if format != "stablehlo" and getattr(trained.model, "head", "") == "cosine":
        raise InputError(
            f"--format={format}: the network has a cosine head, which PyTorch's networks lack, so "
            "its logits would differ there; export it with --format=stablehlo"
        )
    folder = workdir / "export"
    make_workdir(folder, "the export is written there; copy the run to a folder of your own")
    if format == "stablehlo":
        path = folder / "model.stablehlo"
        write(path, to_stablehlo(trained))
    else:
        path = folder / ("model.safetensors" if format == "safetensors" else "model.pth")
        write(path, to_weights(trained, format))
    note = "" if format == "stablehlo" else _other_activation(trained)
    metrics = _tested(workdir, trained.step)
    write(folder / "README.md", model_card(trained, path.name, metrics, note))
    print(f"written to {path}, with a model card next to it")
    if note:
        print(f"note: {note}")
    return path


def _tested(workdir: Path, step: int) -> dict[str, Any]:
    """The metrics of result.json, if they are those of this step."""
    path = workdir / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if not result or result["best_epoch"] * result["steps"] != step * result["epochs"]:
        return {}
    return {key: value for key, value in result.items() if key[:5] == "test_" and value is not None}


def _other_activation(trained: Trained) -> str:
    """What whoever loads the weights must change in PyTorch's network; "" for nothing."""
    of_cvt = trained.config.model.name.startswith("cvt")
    library, usual = ("Hugging Face", "gelu") if of_cvt else ("torchvision", "relu")
    own = getattr(trained.model, "activation", usual)
    if own == usual:
        return ""
    return (
        f"this network computes {own}, {library}'s computes {usual}: change it there, or the "
        "logits differ"
    )


def to_stablehlo(trained: Trained) -> bytes:
    """The network as a portable program, from images `[N, H, W, 3]` in `[0, 1]` to logits.

    The batch size is symbolic; `jax.export.deserialize(data).call(images)` runs it.
    """

    @jax.jit
    def predict(images: jax.Array) -> jax.Array:
        seen = standardize(images, trained.config.dataset)
        return trained.model.apply(trained.variables, seen, train=False)[0]

    (batch,) = jax.export.symbolic_shape("batch")
    size = trained.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    with tracing_for("cpu"):  # so that the program is the same on whatever machine it is made
        program = jax.export.export(predict, platforms=("cpu", "cuda", "tpu"))(images)
    return bytes(program.serialize())


def to_weights(trained: Trained, format: str) -> bytes:
    """The weights under PyTorch's names, as a file of format `safetensors` or `torch`."""
    arrays = to_torch(trained.config.model.name, jax.device_get(trained.variables))
    if format == "safetensors":
        from safetensors.numpy import save

        return bytes(save(arrays))
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, file)
    return file.getvalue()


def model_card(trained: Trained, file: str, metrics: dict[str, Any], note: str = "") -> str:
    """What the network is, what it was trained on, and how well it does."""
    config, size = trained.config, trained.image_size
    rows = "\n".join(f"| {key} | {value:.4f} |" for key, value in metrics.items())
    rows = rows or "| not tested | - |"
    note = note and f"- Note: {note}.\n"
    mean, std = statistics(config.dataset)
    return f"""# {config.name}: {config.model.name} trained with {config.objective}

- File: `{file}`, checkpoint of step {trained.step}.
- Network: {config.model.name}, {len(trained.class_names)} classes, images of {size} x {size}.
- Data: {config.dataset.name}. Input: RGB in [0, 1], of which {mean} is subtracted by channel,
  and which is then divided by {std}.
{note}- Training: {config.num_epochs} epochs, batch {config.batch_size or "8 to 64"},
  seed {config.seed}; terms
  {config.loss.terms.to_dict()} on {", ".join(config.loss.layers)}.
- Licence: (to be filled in by whoever publishes this file)

| metric | value |
| --- | --- |
{rows}

Classes, in the order of the logits: {", ".join(trained.class_names)}.

Trained with gini_jax, the discriminability-enforcing loss (arXiv 2202.07073) in JAX.
"""
