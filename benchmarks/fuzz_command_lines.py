"""Random command lines: a run starts, or one error says what is wrong.

See benchmarks/fuzz.py.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from benchmarks.fuzz_options import options
from gini_jax import cli
from gini_jax.config import default_config
from gini_jax.config.registry import SETTINGS, flattened
from gini_jax.errors import InputError, RunError, Stopped
from gini_jax.modes import train

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ["-1", "0", "1", "2", "3", "7", "64", "1000000", "1" + "0" * 30, "1e400", "0.5", "-0.0"]
TEXTS = ["", "nan", "inf", "-inf", "None", "True", "[]", "()", "{}", "('a',)", "(1, 2)", "x", "ü"]
WORDS = ["digits", "ce", "gini_kl", "sgd", "cosine", "resnet18", "stage2", "mean", "flip", "a=b"]
FLAG_VALUES = {
    "config": [
        "digits",
        "digits:ce",
        "digits:nope",
        "nope",
        "",
        "tests/helpers/tiny.py:supcon",
        ":",
        "ü",
    ],
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
    rows = SETTINGS.of(default_config())
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
        for flag in list(cli.FLAGS.flags_by_module_dict().get(cli.__name__, [])):
            delattr(cli.FLAGS, flag.name)  # of the line before
        line = ["launch.py", f"--workdir={folder}/run", *given_arguments]
        if not any(argument.startswith("--config=") for argument in given_arguments):
            line.append("--config=tests/helpers/tiny.py")  # a small network is traced in less time
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
    """Tries command lines, some in each process; how often each outcome was seen."""
    drawn: list[list[str]] = []

    @options(lines, seed)
    @given(st.lists(arguments(), max_size=4))
    def draw(one):
        drawn.append(one)

    draw()
    counts: Counter[str] = Counter()
    failed: list[str] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fuzz_command_lines"])
    with tqdm(total=len(drawn), unit=" lines") as bar:
        for start in range(0, len(drawn), 100):  # by processes that try so many, then new ones
            some = drawn[start : start + 100]
            with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
                for one, outcome in zip(some, pool.map(try_command_line, some), strict=True):
                    if outcome not in ("starts", "error"):
                        failed.append(f"{one}: {outcome}")
                    counts[outcome] += 1
                    bar.update()
    assert not failed, "\n".join(failed)
    return counts
