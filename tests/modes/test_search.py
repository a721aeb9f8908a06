"""Random search: what is drawn, what is refused, and what the table says."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from PIL import Image

from gini_jax.analysis.sweep_tables import search_markdown
from gini_jax.errors import InputError
from gini_jax.modes.members import members_of
from gini_jax.modes.search import draws, range_of
from gini_jax.modes.sweep import main as sweep
from tests.helpers import tiny
from tests.helpers.program import Program
from tests.helpers.runs import lines_of

RATE = "schedule.learning_rate=log(0.001,0.1)"


def test_draws_are_uniform_in_their_ranges():
    ranges = {
        "log": range_of("log(0.001,0.1)", 0.1),
        "uniform": range_of("uniform(-1,1)", 0.1),
        "whole": range_of("uniform(1,9)", 4),
        "words": ["a", "b"],
    }
    found = draws(ranges, 2000, seed=0)
    logs = [(math.log10(own["log"]) + 3) / 2 for own in found]
    assert scipy.stats.kstest(logs, "uniform").pvalue > 0.01
    assert scipy.stats.kstest([(own["uniform"] + 1) / 2 for own in found], "uniform").pvalue > 0.01
    assert {own["whole"] for own in found} == set(range(1, 10))
    assert abs(np.mean([own["words"] == "a" for own in found]) - 0.5) < 0.05
    assert found[:5] == draws(ranges, 5, seed=0) != draws(ranges, 5, seed=1)


def test_every_objective_tries_the_same_settings_and_a_weight_where_its_term_is():
    vary = [RATE, "loss.terms.gini=log(0.1,1)"]
    members = members_of(tiny.get_config(), ["ce", "gini"], [0, 1], vary, trials=3)
    assert len(members) == len({member.name for member in members}) == 2 * 2 * 3
    rates = {name: set() for name in ("ce", "gini")}
    for member in members:
        rates[member.config.objective].add(member.config.schedule.learning_rate)
        assert ("loss.terms.gini" in member.changes) == (member.config.objective == "gini")
    assert len(rates["ce"]) == 3 and rates["ce"] == rates["gini"]


WRONG = {
    "no trials": ({"search": "random", "vary": [RATE]}, "needs --trials and --vary"),
    "no settings": ({"search": "random", "trials": 3}, "needs --trials and --vary"),
    "no search": ({"trials": 3, "vary": ["seed=1"]}, "no effect without --search=random"),
    "another search": ({"search": "grid"}, "did you mean|Known: random"),
    "a range alone": ({"vary": [RATE]}, "--search=random --trials=20"),
    "bounds out of order": (
        {"search": "random", "trials": 2, "vary": ["schedule.learning_rate=log(1,0.1)"]},
        "smaller number above 0 first",
    ),
    "a word": (
        {"search": "random", "trials": 2, "vary": ["optimizer.name=log(1,2)"]},
        "only numbers are drawn",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_search_is_refused(case, tmp_path):
    flags, text = WRONG[case]
    with pytest.raises(InputError, match=text):
        sweep(tiny.get_config("ce"), tmp_path / "sweep", **flags)
    assert not (tmp_path / "sweep").exists()


def test_a_search_needs_validation_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    config = tiny.get_config("ce")
    config.dataset.update(name="folder", data_dir=str(tmp_path / "photos"), num_classes=0)
    config.dataset.update(val_size=0, test_size=2)
    with pytest.raises(InputError, match=r"set --config\.dataset\.val_size"):
        sweep(config, tmp_path / "sweep", search="random", trials=2, vary=[RATE])


@pytest.mark.slow
def test_a_search_ends_in_the_best_settings_by_validation_alone(tmp_path):
    arguments = ("--objectives=ce,gini", "--search=random", "--trials=2", f"--vary={RATE}")
    common = ("--mode=sweep", "--config=tests/helpers/tiny.py", f"--workdir={tmp_path}")
    short = ("--config.num_epochs=1", "--config.loss.start_epoch=1")
    out, _ = Program(*common, *arguments, *short).finish()
    assert "report.html" not in out and not (tmp_path / "report.html").exists()
    table, page = pd.read_csv(tmp_path / "sweep.csv"), (tmp_path / "sweep.md").read_text()
    assert len(table) == 4 and "## ce: 2 trials" in page and "## gini: 2 trials" in page
    assert page == search_markdown(table)
    by_validation = {
        path.name: lines_of(path)[-1]["val_accuracy"] for path in tmp_path.glob("*-seed0")
    }
    for objective in ("ce", "gini"):
        own = {k: v for k, v in by_validation.items() if k.startswith(f"{objective}-")}
        best = max(own, key=own.get).removeprefix(f"{objective}-").removesuffix("-seed0")
        first = page.partition(f"## {objective}:")[2].splitlines()[4]
        assert f"| {max(own.values()):.4f} |" in first
        assert f"--config.{best} |" in first or len(set(own.values())) == 1
