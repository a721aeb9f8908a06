"""How settings are read: the command line's forms, names of parts, odd values, varied settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gini_jax
from gini_jax import cli
from gini_jax.config.change import changed, default_config
from gini_jax.config.files import from_saved, read_config
from gini_jax.config.values import written
from gini_jax.errors import InputError
from gini_jax.help import usage
from gini_jax.modes.members import member_command, members_of, seeds_of
from gini_jax.modes.search import range_of
from gini_jax.training.checks import check_config
from gini_jax.training.experiment import check_before_data
from gini_jax.training.workdir import config_json
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.program import Program


def test_all_forms_of_an_argument_are_read():
    line = ["x", "--config", "digits:ce", "-config.seed=3", "--config.report", "--noconfig.profile"]
    given = {"seed": "3", "report": "true", "profile": "false"}
    assert cli._split([*line, "--mode", "eval"]) == ("digits:ce", given, ["x", "--mode", "eval"])
    assert cli._mode_of(["x", "--mode", "eval"]) == cli._mode_of(["x", "-mode=eval"]) == "eval"
    for wrong in (["x", "--mode"], ["x", "--mode", "--workdir=a"]):
        with pytest.raises(InputError, match="unknown mode"):
            cli._mode_of(wrong)
    with pytest.raises(InputError, match="names no file"):
        cli._split(["x", "--config"])
    with pytest.raises(InputError, match="give one config"):
        cli._split(["x", "--config=digits", "--config=digits"])


@pytest.mark.slow
def test_an_empty_config_is_refused(tmp_path):
    assert "unknown config ''" in Program("--config=", cwd=tmp_path).finish(status=1)[1]


def test_a_dry_run_prints_the_config_however_it_was_given(tmp_path):
    line = ("--mode=sweep", "--config", "fashion_mnist", "--config.num_epochs", "7", "--dry_run")
    out, _ = Program(*line, "--objectives=ce", "--seeds=0", cwd=tmp_path).finish()
    assert "--config=fashion_mnist:ce" in out and "--config.num_epochs=7" in out


def test_a_config_file_gives_a_weight_for_each_layer(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gini_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config('gini_kl')\n"
        "    config.loss.layers = ('stage3', 'stage4')\n"
        "    config.loss.terms.gini = {'stage3': 0.1, 'stage4': 0.5}\n"
        "    return config\n"
    )
    config = read_config(str(file))
    check_config(config, 1)
    again = from_saved(json.loads(config_json(config)))
    gini = {"weight": {"stage3": 0.1, "stage4": 0.5}}
    assert again.loss.terms.to_dict() == {"gini": gini, "kl": {"weight": 0.5, "target": "batch"}}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("pass", "get_config gives a NoneType"),
        ("return {}", "get_config gives a dict"),
        ("return 1 / 0", r"ends in an error \(ZeroDivisionError"),
    ],
)
def test_a_config_file_that_is_none_is_refused(code, text, tmp_path):
    (tmp_path / "mine.py").write_text(f"def get_config():\n    {code}\n")
    with pytest.raises(InputError, match=text):
        read_config(str(tmp_path / "mine.py"))


def test_a_config_without_a_section_is_refused_and_a_saved_one_gets_it():
    config = default_config()
    with config.unlocked():
        del config.schedule
    with pytest.raises(InputError, match=r"the config lacks 'schedule.name'"):
        check_config(config, 1)
    saved = json.loads(config_json(default_config()))
    del saved["optimizer"]
    assert from_saved(saved).optimizer.momentum == 0.9


@pytest.mark.parametrize(
    "path", ["optimizer.name", "schedule.name", "model.name", "loss.terms.math:pi", "evals"]
)
def test_a_name_of_something_else_is_refused(path):
    value = 0.5 if path.startswith("loss") else "math:pi"
    with pytest.raises(InputError, match=r"math:pi.* is 3.14.*, but must be"):
        check_config(changed(default_config(), {path: value}), 1)


@pytest.mark.parametrize("name", ["optax:adam", "optax:constant_schedule", "dataclasses:Field"])
def test_a_function_of_optax_is_no_schedule(name):
    for section in ("schedule", "optimizer"):
        with pytest.raises(InputError, match="must be a dataclass like"):
            changed(default_config(), {f"{section}.name": name})


def test_renamed_settings_say_their_new_name():
    for path in ("loss.terms.collision", "loss.gini_weight"):
        with pytest.raises(InputError, match=r"it is now loss.terms"):
            changed(default_config(), {path: 0.5})


@pytest.mark.parametrize(
    ("path", "text", "error"),
    [
        ("seed", "{[1]}", "seed='{.1.}' has type str"),
        ("loss.layers", "{[]:1}", "unknown layer in loss.layers"),
        ("loss.terms.gini", "1" + "0" * 400, "must lie in"),
        ("loss.terms.gini.weight.stage4.x", "0.5", "unknown layer in loss.layers 'stage4.x'"),
        ("loss.terms.os.path:join", "0.5", "has a dot"),
        ("augment.os.path:join", "0.5", "has a dot"),
        ("num_epochs", "true", "num_epochs='true' has type str; it needs type int"),
    ],
)
def test_odd_values_end_in_one_error(path, text, error):
    with pytest.raises(InputError, match=error):
        check_before_data(changed(tiny.get_config("gini"), {path: text}, written))


def test_a_sweep_varies_schedules_together_with_their_settings(tmp_path):
    config = changed(tiny.get_config("ce"), {"schedule.final": 0.01})
    vary = ["schedule.name=cosine,step", "schedule.final=0.0,0.01"]
    members = members_of(config, ["ce"], [0], vary)
    names = [member.name for member in members]
    assert len(names) == 3 and "ce-schedule.name=step-seed0" in names
    step = next(m for m in members if m.config.schedule.name == "step")
    shared = [
        "--config=tests/helpers/tiny.py",
        "--config.schedule.final=0.01",
        "--config.num_epochs=3",
    ]
    command = member_command(step, tmp_path, shared)
    assert "schedule.final" not in command and "--config.schedule.name=step" in command
    with pytest.raises(InputError, match=r"unknown setting in --vary 'schedule\.factor'"):
        members_of(config, ["ce"], [0], ["schedule.factor=0.1,0.2"])
    last = ["schedule.factor=0.1", "schedule.name=step"]  # in any order, which names keep
    (member,) = members_of(config, ["ce"], [0], last)
    assert member.name == "ce-schedule.factor=0.1-schedule.name=step-seed0"


def test_a_sweep_varies_settings_of_ones_own_parts():
    term = "plugins:spread_loss"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("tests/helpers")
        config = changed(tiny.get_config("ce"), {f"loss.terms.{term}": 0.1})
        vary = [f"loss.terms.{term}.power=2.0,3.0", "augment.plugins:darken=0.2,0.3"]
        members = members_of(config, [config.objective], [0], vary)
    assert len(members) == 4


def test_seeds_of_a_sweep_are_in_rising_order_and_named_once():
    with pytest.raises(InputError, match=r"--seeds=5-3 names no seed.*: 3-5"):
        seeds_of("5-3")
    with pytest.raises(InputError, match="names a seed twice"):
        seeds_of("1,2,1")


def python(*arguments, cwd=ROOT):
    """A process of its own, without the libraries that a script of a user may lack."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_ctrl_c_ends_in_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch.py"])
    assert ended.value.code == 130
    assert capsys.readouterr().out == "stopped; the same command goes on where it was\n"


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_is_no_error():
    line = [sys.executable, "launch.py", "--mode=sweep", "--dry_run", "--seeds=0-99"]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"python launch.py")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


LACKING = "import sys; sys.modules['ml_collections'] = None; sys.argv[1:] = ['--help']; "


@pytest.mark.parametrize(
    "code", ["import gini_jax.__main__ as m; m.main()", "import gini_jax; gini_jax.load"]
)
def test_without_the_training_code_bases_requirements_one_error_says_what_to_install(code):
    done = python("-c", LACKING + code)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "the module ml_collections is not installed" in said
    assert 'pip install "gini_jax[train]"' in said


def test_a_script_beside_a_clone_finds_the_installed_package(tmp_path):
    """The clone's folder, of the package's name, is no package: what is installed goes first."""
    if not any(Path(x).resolve() == ROOT for x in site_paths()):
        pytest.skip("needs an editable install of the package, as README's test command makes it")
    (tmp_path / "gini_jax").mkdir()
    (tmp_path / "script.py").write_text("import gini_jax\nprint(gini_jax.__version__)\n")
    done = python("script.py", cwd=tmp_path)
    assert done.stdout == f"{gini_jax.__version__}\n", done.stderr


def site_paths():
    """What an editable install has added to Python's path."""
    folders = [Path(x) for x in sys.path if x.endswith("site-packages")]
    return [x.read_text().strip() for folder in folders for x in folder.glob("*gini_jax*.pth")]


def test_members_that_change_many_settings_have_names_that_fit():
    vary = [f"{path}=0.1,0.2" for path in ("optimizer.momentum", "optimizer.clip_norm")]
    vary += [f"augment.{x}=0.11111111" for x in ("mixup", "cutmix", "resized_crop")]
    vary += ["loss.label_smoothing=0.1,0.2", "optimizer.ema_decay=0.5"]
    vary += ["loss.ce_weight=0.123456789,1", "dataset.label_noise=0.1"]
    members = members_of(tiny.get_config("ce"), ["ce"], [0], vary)
    names = [member.name for member in members]
    assert len(set(names)) == 2**4
    assert max(len(name.encode()) for name in names) <= 200


def test_a_varied_setting_needs_values():
    with pytest.raises(InputError, match="--vary=batch_size= gives no value; give some, as in"):
        members_of(tiny.get_config("ce"), ["ce"], [0], ["batch_size="])


def test_whole_numbers_are_drawn_alike_from_a_range():
    text, counts = range_of("uniform(1,3)", 1), np.zeros(4)
    for u in np.linspace(0, 1, 3000, endpoint=False):
        counts[text.at(u)] += 1
    np.testing.assert_allclose(counts[1:], 1000, atol=1)
    logs = range_of("log(1,4)", 1)
    drawn = [logs.at(u) for u in np.linspace(0, 1, 3000, endpoint=False)]
    shares = np.diff(np.log([0.5, 1.5, 2.5, 3.5, 4.5])) / np.log(9)
    np.testing.assert_allclose(np.bincount(drawn)[1:] / 3000, shares, atol=2e-3)
    with pytest.raises(InputError, match="give whole bounds"):
        range_of("uniform(0.5,3)", 1)


def test_weights_on_the_command_line_are_named_once():
    line = ("--init_from=runs/a", "--config.model.init=runs/b", "--workdir=runs/c")
    _, err = Program(*line).finish(status=1)
    assert "both name weights to start from; give one of them" in err


TWICE = {
    "--mode is given 2 times": ["--mode=train", "--mode=sweep"],
    "--init_from= is empty": ["--init_from="],
    "--seeds= is empty": ["--mode=sweep", "--seeds="],
}


@pytest.mark.parametrize("text", TWICE)
def test_what_is_given_twice_or_empty_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=text):
        cli.run(["launch.py", *TWICE[text]])


def test_an_objective_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match="--objectives=ce,ce names one twice"):
        members_of(tiny.get_config("ce"), ["ce", "ce"], [0], [])


def test_an_empty_text_is_an_empty_tuple():
    assert written("evals", "", ("all",)) == ()


IMPORTED = """
import sys
from gini_jax import cli
from gini_jax.errors import InputError

cli.run(["launch.py", "--help=loss"])
print("after help:", *sorted({name.split(".")[0] for name in sys.modules}))
for line in LINES:
    for flag in [*cli.FLAGS.flags_by_module_dict().get("gini_jax.cli", [])]:
        delattr(cli.FLAGS, flag.name)  # of the line before
    try:
        cli.run(["launch.py", *line])
    except InputError as error:
        print("error:", error)
print("after errors:", *sorted({name.split(".")[0] for name in sys.modules}))
"""
SLOW_TO_IMPORT = {"matplotlib", "pandas", "scipy", "sklearn", "grain", "orbax", "dm_pix"}
SLOW_TO_IMPORT |= {"tensorflow_datasets", "tensorstore", "datasets", "torch"}


def test_help_and_errors_import_nothing_that_draws_trains_or_loads_data(tmp_path):
    lines = [
        ["--config.loss.foo=1"],
        ["--config=digits:gin"],
        ["--mode=report", f"--workdir={tmp_path}/none"],
        ["--mode=sweep", "--vary=seed=1", "--speed=2"],
    ]
    usage()  # collects and keeps what the process below reads
    done = python("-c", IMPORTED.replace("LINES", repr(lines)))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    modules = {line.split(":")[0]: {*line.split()[2:]} for line in said if line[:6] == "after "}
    assert "  --config.loss.start_epoch=1" in said
    assert not modules["after help"] & {*SLOW_TO_IMPORT, "jax", "flax", "optax", "numpy"}
    assert not modules["after errors"] & SLOW_TO_IMPORT
    assert [line[:24] for line in said if line[:6] == "error:"] == [
        "error: unknown setting '",
        "error: unknown objective",
        f"error: '{tmp_path}"[:24],
        "error: Unknown command l",
    ]
