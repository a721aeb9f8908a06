"""A network as an ONNX file, converted by jax2onnx and checked by onnxruntime."""

import logging
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gini_jax.data.augment import to_float
from gini_jax.data.images import stored_size
from gini_jax.errors import InputError, RunError, first_line
from gini_jax.evals.extract import forward_pass
from gini_jax.modes.formats import Format
from gini_jax.platform import tracing_for
from gini_jax.trained import Trained

# jax2onnx asks for an older orbax than training does, though it works with either. So pip is told
# not to look at what it asks for.
INSTALL = (
    "pip install --no-deps jax2onnx==0.17.1 onnx onnx-ir onnxruntime flatbuffers protobuf "
    "ml_dtypes einops equinox wadler_lindig sympy mpmath"
)
MODULES = ("jax2onnx", "onnx", "onnx_ir", "onnxruntime", "einops", "equinox", "sympy")
TOLERANCE = 1e-3  # of the largest logit or probability


def to_onnx(trained: Trained) -> bytes:
    """From images `[N, S, S, 3]`, uint8, to probabilities `[N, K]`; the preprocessing is inside."""
    return _converted(trained, "probabilities")


def to_onnx_logits(trained: Trained) -> bytes:
    """From images `[N, S, S, 3]`, float32 in `[0, 1]`, to logits `[N, K]`."""
    return _converted(trained, "logits")


def _converted(trained: Trained, output: str) -> bytes:
    """The network with any number of images, whose outputs in onnxruntime are as here.

    Raises:
        InputError: a package is missing, or the network cannot be converted.
        RunError: the converted network gives something else.
    """
    if lacking := [name for name in MODULES if find_spec(name) is None]:
        raise InputError(f"--format=onnx needs {lacking[0]}, and what belongs to it: {INSTALL}")
    import jax2onnx

    whole = output == "probabilities"

    def predict(images: jax.Array, variables: Any) -> jax.Array:
        seen = to_float(images) if whole else images
        logits = forward_pass(trained.model, trained.config.dataset, variables, seen)[0]
        return jax.nn.softmax(logits) if whole else logits

    size, kind = trained.image_size, np.uint8 if whole else np.float32
    (count,) = jax.export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((count, size, size, 3), kind)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of scalars
    try:
        with tracing_for("cpu"):
            found: Any = jax2onnx.to_onnx(
                lambda images: predict(images, trained.variables),
                [images],
                model_name=trained.config.name or "gini_jax",
                input_names=["images"],
                output_names=[output],
            )
    except Exception as error:  # a network of one's own can fail in many ways
        raise InputError(
            f"--format=onnx: jax2onnx cannot convert model.name={trained.config.model.name!r} "
            f"({type(error).__name__}: {first_line(error)}); export it with --format=stablehlo"
        ) from error
    for name, value in _facts(trained).items():
        entry = found.metadata_props.add()
        entry.key, entry.value = name, value
    data: bytes = found.SerializeToString()
    with jax.default_device(jax.devices("cpu")[0]):  # products are exact there
        # Not as constants, which the compiler would fold into others: gigabytes in large networks.
        _compare(data, partial(jax.jit(predict), variables=trained.variables), images)
    return data


def _facts(trained: Trained) -> dict[str, str]:
    """What the file says of itself."""
    return {
        "classes": "\n".join(trained.class_names),
        "image_size": str(trained.image_size),
        "stored_size": str(stored_size(trained.image_size)),
    }


def _compare(data: bytes, predict: Any, images: jax.ShapeDtypeStruct) -> None:
    """Compares the file in onnxruntime with the network here, for one image and for three.

    Raises:
        InputError: onnxruntime cannot run it.
        RunError: they differ.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        try:
            session = onnxruntime.InferenceSession(str(path))
        except Exception as error:  # onnxruntime lacks some operations on bfloat16
            raise InputError(
                f"--format=onnx: onnxruntime cannot run the network ({first_line(error)}); if its "
                "model.dtype is bfloat16, train it with float32; or use --format=stablehlo"
            ) from error
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, *images.shape[1:]))
        scale = 1 if images.dtype == np.uint8 else 255
        given = (pixels / scale).astype(images.dtype)
        (theirs,) = session.run(None, {"images": given})
        ours = np.asarray(predict(jnp.asarray(given)))
        gap = np.abs(ours - theirs).max() / np.abs(ours).max()
        if not gap <= TOLERANCE:
            raise RunError(
                f"the ONNX file gives other numbers in onnxruntime than here, by {gap:.1e} of "
                "the largest; nothing is written. Export with --format=stablehlo"
            )


WHOLE = Format("model.onnx", to_onnx, "whole")
LOGITS = Format("model.logits.onnx", to_onnx_logits)
