"""The page about runs: what stands where, by what names, and which pictures it has."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import jax
import markupsafe
import numpy as np
import pytest
from matplotlib.figure import Figure

import gini_jax
from gini_jax.analysis import figures
from gini_jax.analysis import report as report_page
from gini_jax.analysis.names import short_names
from gini_jax.analysis.page import is_up_to_date
from gini_jax.analysis.report import page_of, write_report
from gini_jax.analysis.runs import read_runs
from gini_jax.analysis.sweep_tables import summary, write_csv
from gini_jax.analysis.tsne import tsne
from gini_jax.cli import _split
from gini_jax.config.change import changed
from gini_jax.config.files import command_of, read_config
from gini_jax.config.values import written
from gini_jax.errors import InputError
from gini_jax.help import usage
from gini_jax.modes import report, sweep, train
from gini_jax.training.workdir import differences, saved_config
from tests.conftest import ROOT
from tests.helpers import dense


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two objectives, two settings and two seeds."""
    config, folder = dense.get_config("ce"), tmp_path_factory.mktemp("report") / "sweep"
    config.update(num_epochs=2, report=False)
    vary = ["optimizer.weight_decay=0.0005,0.0001"]
    sweep.main(config, folder, objectives="ce,gini", seeds="0,1", vary=vary)
    return folder


@pytest.fixture(scope="module")
def page(swept):
    return write_report(swept).read_text()


@pytest.mark.slow
def test_each_group_is_a_row_with_a_short_name(page):
    assert "<h1>dense: ce, gini, 2 settings, 2 seeds</h1>" in page
    rows = re.findall(r"<tr><td>(.*?)</td><td>([\d.]+)", page)
    names = ["ce, 0.0001", "ce, 0.0005", "gini, 0.0001", "gini, 0.0005"]
    assert [name for name, _ in rows[:4]] == names
    assert "A name below is the objective, and optimizer.weight_decay." in page
    assert "weight_decay=0.0001" not in page.split("What was run")[0]


@pytest.mark.slow
def test_no_two_sections_have_one_heading(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert len(headings) == len(set(headings))
    assert headings[0] == "Results"
    assert "Against cross-entropy" in headings
    against = page.split("<h2>Against cross-entropy</h2>")[1].split("</section>")[0]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", against) == [
        ("gini, 0.0001", "ce, 0.0001"),
        ("gini, 0.0005", "ce, 0.0005"),
    ]


@pytest.mark.slow
def test_the_tables_of_a_sweep_begin_with_a_summary(swept):
    table = write_csv(swept)
    lines = summary(table).splitlines()
    means = table.groupby("group")["test_accuracy"].mean().sort_values(ascending=False)
    best = short_names(list(dict.fromkeys(table["group"]))).short[means.index[0]]
    assert lines[0].startswith(f"- **{best}**: test accuracy {means.iloc[0]:.4f} ±")
    assert sum("against ce, 0.000" in line for line in lines) == 2
    assert (swept / "sweep.md").read_text().splitlines()[2:4] == lines[:2]
    assert summary(table, most=2).splitlines()[2] == "- 2 more groups stand in the tables below."


@pytest.mark.slow
def test_other_settings_are_advised_another_folder_for_the_sweep(swept):
    config = dense.get_config("ce")
    config.update(num_epochs=2, report=False, batch_size=32)
    vary = ["optimizer.weight_decay=0.0005,0.0001"]
    with pytest.raises(InputError, match=f"such as --workdir={swept}-2, set these values back"):
        sweep.main(config, swept, objectives="ce,gini", seeds="0,1", vary=vary)


@pytest.mark.slow
def test_pictures_have_no_panel_without_a_line_and_whole_epochs(swept):
    groups = read_runs(swept)
    figure = figures.curves(groups)
    assert {axis.get_title() for axis in figure.axes if axis.get_visible()} == {
        "Cross-entropy",
        "Accuracy",
        "Gini impurity of the features",
        "KL of the features' distribution",
    }
    for axis in figure.axes:
        assert axis.get_legend() is None  # it lies below the panels
        assert all(tick == round(tick) for tick in axis.get_xticks())
    for runs in groups.values():
        for run in runs:
            run.lines[:] = [{k: v for k, v in x.items() if "val" not in k} for x in run.lines]
    shown = [axis.get_title() for axis in figures.curves(groups).axes if axis.get_visible()]
    assert shown == ["Cross-entropy", "Accuracy"]
    page = page_of(groups)
    assert "there is no validation split" in page
    assert "of the whole validation split" not in page


@pytest.mark.slow
def test_many_groups_are_drawn_in_rows_of_four(swept):
    run = next(iter(read_runs(swept).values()))[0]
    groups = {f"group {i}": [run] for i in range(9)}
    figure = figures.profiles(groups)
    visible = [axis for axis in figure.axes if axis.get_title().startswith("group")]
    assert len(visible) == 9
    assert len({round(axis.get_position().y0, 2) for axis in visible}) in (1, 3)
    assert isinstance(figures.embedding(groups), Figure)
    assert [x.get_text() for x in figure.axes[0].get_yticklabels()] == run.class_names


@pytest.mark.slow
def test_a_run_alone_says_which_commands_set_it_against_cross_entropy(tmp_path):
    config = gini_jax.get_config("digits:gini", num_epochs=1, **{"loss.start_epoch": 1})
    changed(config, {"batch_size": 399, "model.width": 4, "loss.layers": ("stage3",)})
    config.update(evals=(), loggers=("jsonl",))
    train.main(config, tmp_path / "run", devices=jax.devices()[:1])
    page = (tmp_path / "run" / "report.html").read_text()
    command = command_of(config.to_dict(), "ce", f"{tmp_path}/run-ce")
    assert str(markupsafe.escape(command)) in page
    assert f"--mode=report --workdir={tmp_path}/run,{tmp_path}/run-ce" in page
    file, given, rest = _split(shlex.split(command)[1:])
    assert rest == ["launch.py", f"--workdir={tmp_path}/run-ce"]
    other = changed(read_config(file), given, written)
    saved = saved_config(tmp_path / "run")
    assert set(differences(saved, other)) <= {"objective", "loss.terms.gini.weight"}
    assert np.array_equal(other.loss.layers, ["stage3"])


@pytest.mark.slow
def test_points_that_coincide_are_placed_once():
    """In a process of its own: where they are not merged, the quadtree ends the process."""
    program = """if True:
        import numpy as np
        from gini_jax.analysis.tsne import tsne
        rng = np.random.default_rng(0)
        points = np.repeat(rng.normal(size=(12, 3)), 60, axis=0)
        points += rng.normal(size=points.shape) * 1e-9
        placed = tsne(points)
        assert len(np.unique(placed, axis=0)) == 12 and np.isfinite(placed).all()
        assert tsne(np.vstack([points, rng.normal(size=(400, 3))])).shape == (1120, 2)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for few in (np.zeros((2, 3)), np.ones((40, 3))):
        with pytest.raises(RuntimeError, match="different points are too few"):
            tsne(few)


@pytest.mark.slow
def test_processes_draw_the_same_page(swept, page, monkeypatch):
    monkeypatch.setattr(report_page, "MANY_GROUPS", 1)
    assert page_of(read_runs(swept)) == page.rpartition("\n<!-- drawn from")[0]


SHOWN = """
import sys
from gini_jax.cli import run

run(["launch.py", "--mode=report", "--workdir=FOLDER"])
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_a_page_is_drawn_again_only_if_its_runs_have_changed(swept, page, capfd, tmp_path):
    folder, config = tmp_path / "sweep", dense.get_config("ce")
    shutil.copytree(swept, folder)
    config.update(num_epochs=2, report=True)
    vary = ["optimizer.weight_decay=0.0005,0.0001"]
    settings = {"objectives": "ce,gini", "seeds": "0,1", "vary": vary}
    assert not is_up_to_date([folder])  # the page names the folder
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    usage()  # keeps the table of flags
    code = SHOWN.replace("FOLDER", str(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "shows these runs as they are" in done.stdout, done.stderr
    assert not {"matplotlib", "pandas", "scipy", "sklearn"} & {*done.stdout.split()}
    table = sweep.main(config, folder, **settings)
    assert "nothing to do: all 8 members have ended" in capfd.readouterr().out
    assert len(table) == 8 and (folder / "report.html").read_bytes() == before
    result = next(folder.glob("*/result.json"))
    changed_result = json.loads(result.read_text()) | {"test_accuracy": 0.123}
    result.write_text(json.dumps(changed_result))
    report.main(config, folder)
    assert (folder / "report.html").read_bytes() != before
