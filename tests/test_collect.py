"""docs/collect.py: from the runs' folders to the files of results/sweeps/."""

import json

import pandas as pd
import pytest

from docs import collect
from docs.collect import Sweep
from gini_jax.training.workdir import config_json
from tests.helpers import tiny


def add_run(runs, sweep, name, ratios=(), **changes):
    objective, _, seed = name.rpartition("-seed")
    config = tiny.get_config(objective)
    config.update_from_flattened_dict({"seed": int(seed), **changes})
    folder = runs / sweep / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_json(config))
    result = {"objective": objective, "seed": int(seed), "test_accuracy": 0.5 + int(seed) / 10}
    (folder / "result.json").write_text(json.dumps(result))
    name_of_ratio = "train_share_kl" if sweep == "first" else "train_gradient_ratio_kl"
    lines = [{"epoch": i + 1, "train_kl": 0.1, name_of_ratio: r} for i, r in enumerate(ratios)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_sweeps_are_joined_with_the_settings_in_which_they_differ(tmp_path, monkeypatch, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(collect, "SWEEPS", out)
    first = Sweep("first", only=("ce", "kl"), seeds=2)
    monkeypatch.setattr(collect, "FILES", {"both": [first, Sweep("second", ", 16")]})
    for name in ("kl-seed1", "kl-seed0", "ce-seed1", "ce-seed0", "kl-seed2", "gini-seed0"):
        add_run(runs, "first", name, ratios=[0.2, 0.3] if name.startswith("kl") else ())
    add_run(runs, "second", "kl-seed0", ratios=[0.4, 1e12], **{"batch_size": 16})
    (add_run(runs, "second", "kl-seed1") / "result.json").unlink()

    collect.collect(runs, "both")
    table = pd.read_csv(out / "both.csv")
    rows = list(zip(table["group"], table["seed"], table["config.batch_size"], strict=True))
    usual = tiny.get_config("ce").batch_size
    assert rows == [*((g, s, usual) for g in ("ce", "kl") for s in (0, 1)), ("kl, 16", 0, 16)]
    assert [name for name in table if name.startswith("config.")] == ["config.batch_size"]
    assert "kl-seed1 has not finished; left out" in capsys.readouterr().out

    ratios = pd.read_csv(out / "both_gradient_ratios.csv")
    of_second = ratios[ratios["group"] == "kl, 16"]
    assert ratios[ratios["group"] == "kl"]["gradient_ratio"].tolist() == [0.2, 0.3, 0.2, 0.3]
    assert of_second["gradient_ratio"].tolist() == [0.4] and of_second["value"].tolist() == [0.1]


def test_where_a_sweep_is_not_there_the_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SWEEPS", tmp_path)
    (tmp_path / "digits.csv").write_text("kept")
    with pytest.raises(SystemExit, match="digits_sweep holds no runs; nothing was written"):
        collect.collect(tmp_path, "digits")
    assert (tmp_path / "digits.csv").read_text() == "kept"
