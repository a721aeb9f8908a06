"""Eight simulated devices for every test, and no accelerator."""

import gc
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_TFDS = ROOT.parent / "shared" / "tfds"
collect_ignore = ["imported.py"]  # of the server of processes alone

# Compiling and decoding take most of the time: programs are compiled quickly rather than well, and
# the workers share what they have done.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # as `devices.prepare_cpu` sets it; others do not know it
    QUICK += " --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # writing takes as long
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled, decoded = TemporaryDirectory(), TemporaryDirectory()  # gone with the process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["XDG_CACHE_HOME"] = decoded.name
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"  # as `devices.prepare_cpu` sets it
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # tracing is faster without
gc.set_threshold(100_000, 100, 1000)  # tracing makes many objects, few of them in cycles
os.environ["NPROC"] = "64"  # threads: those of simulated devices wait for each other

if find_spec("beartype"):  # shapes and types in annotations hold while the tests run
    from jaxtyping import install_import_hook

    import tests.helpers.shapes  # noqa: F401

    install_import_hook("gini_jax", "tests.helpers.shapes.checked")

    import gini_jax.config.defaults  # noqa: F401  # fills the table of settings


@pytest.fixture
def shared_tfds() -> Path:
    """Prepared CIFAR-100 and Caltech-101, where the machine has them."""
    if not SHARED_TFDS.is_dir():
        pytest.skip(f"needs CIFAR-100 in TFDS form at {SHARED_TFDS}, which is not there")
    return SHARED_TFDS


@pytest.fixture(autouse=True)
def runs_leave_out_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing both takes as long as a few epochs. Runs of wider fixtures draw theirs."""
    if find_spec("matplotlib"):
        from gini_jax import drawing

        draw, left_out = drawing.save, ("curves.png", "impurity.png")

        def save(png: Path, *arguments: Any) -> None:
            if png.name not in left_out:
                draw(png, *arguments)

        monkeypatch.setattr(drawing, "save", save)
