"""Executors: members of a sweep one after the other, or side by side in processes of their own."""

import json
import re
import signal
import sys
from types import ModuleType

import pytest

from gini_jax.errors import Busy, InputError, RunError, Stopped
from gini_jax.modes import executors, sweep
from gini_jax.modes.executors import inline, local
from gini_jax.modes.executors.local import accelerators, environments, shares_of_cores
from gini_jax.modes.members import Member
from gini_jax.training.lock import lock
from tests.conftest import ROOT
from tests.helpers import tiny


def test_each_process_gets_a_device_of_its_own():
    gpus = environments("gpu", ["0", "1", "5"], 3)
    assert [x["CUDA_VISIBLE_DEVICES"] for x in gpus] == ["0", "1", "5"]
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in x for x in gpus)
    shared = environments("gpu", ["0", "1"], 5)
    assert [x["CUDA_VISIBLE_DEVICES"] for x in shared] == ["0", "1", "0", "1", "0"]
    assert {x["XLA_PYTHON_CLIENT_MEM_FRACTION"] for x in shared} == {"0.30"}  # three on GPU 0
    chips = environments("tpu", ["0", "1", "2", "3"], 2)
    assert [x["TPU_VISIBLE_CHIPS"] for x in chips] == ["0", "1"]
    with pytest.raises(InputError, match=r"exceeds the 4 chips.*--parallel=4"):
        environments("tpu", ["0", "1", "2", "3"], 5)
    assert environments("cpu", [], 2) == [{}, {}]


def test_cores_are_divided_without_rest(monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: [0, 1, 2, 3, 6, 7])
    shares = shares_of_cores(4)
    assert sorted(core for share in shares for core in share) == [0, 1, 2, 3, 6, 7]
    assert min(map(len, shares)) == 1
    assert shares_of_cores(8)[7] == [0, 1, 2, 3, 6, 7]


def test_accelerators_are_those_that_the_user_left(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert accelerators() == ("gpu", ["2", "7"])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerators() == ("cpu", [])


@pytest.mark.slow
def test_members_side_by_side_give_what_they_give_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "write_report", lambda workdir: None)
    config = tiny.get_config("ce")
    config.num_epochs = 1
    sweep.main(config, tmp_path / "inline")
    table = sweep.main(config, tmp_path / "local", seeds="0-1", executor="local", parallel=2)
    assert list(table["member"]) == ["ce-seed0", "ce-seed1"]
    one, other = (
        json.loads((tmp_path / way / "ce-seed0" / "metrics.jsonl").read_text())
        for way in ("inline", "local")
    )
    for key in ("train_seconds", "images_per_second"):
        del one[key], other[key]
    assert one == pytest.approx(other, rel=1e-4)


def test_a_process_that_dies_takes_no_other_with_it(tmp_path, monkeypatch):
    programs = {
        "killed": "import os; os.kill(os.getpid(), 9)",
        "failed": "import sys; sys.exit('member ended: RunError: the loss is not finite')",
        "busy": "import sys; print('member ended: is written by 7'); sys.exit(75)",
        "good": "pass",
        "talkative": "import os; [os.write(2, b'C++ says a lot\\n' * 100) for _ in range(200)]",
        "unclear": "import os; os.write(2, b'no device'); os._exit(3)",
    }
    monkeypatch.setattr(
        local, "_command", lambda folder: [sys.executable, "-c", programs[folder.name]]
    )
    members = [Member(name, tiny.get_config(), {}) for name in programs]
    started = []
    ended = {
        member.name: error for member, error in local.run(members, tmp_path, started.append, 2)
    }
    assert started == [f"now {name}" for name in programs]
    assert ended["good"] is None and ended["talkative"] is None
    assert "status 3; the end of" in str(ended["unclear"]) and "no device" in str(ended["unclear"])
    assert [path.stem for path in sorted(tmp_path.glob("*.stderr"))] == [
        name for name in sorted(programs) if ended[name] is not None
    ]
    assert isinstance(ended["busy"], Busy)
    assert isinstance(ended["killed"], RunError)
    assert "SIGKILL" in str(ended["killed"])
    assert "the loss is not finite" in str(ended["failed"])


def test_a_signal_that_comes_while_a_process_starts_reaches_it(tmp_path, monkeypatch):
    start = local._start

    def start_and_signal(*args):
        process = start(*args)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(local, "_start", start_and_signal)
    monkeypatch.setattr(
        local, "_command", lambda folder: [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    members = [Member("long", tiny.get_config(), {})]
    with pytest.raises(Stopped, match="all members saved"):
        list(local.run(members, tmp_path, print, 1))


def test_a_member_that_another_process_trains_is_skipped(tmp_path, capsys):
    config = tiny.get_config("ce")
    config.num_epochs = 1
    folder = tmp_path / "ce-seed0"
    folder.mkdir()
    (folder / "config.json").write_text("{}")  # so that the lock's file stays
    with lock(folder):
        (folder / "config.json").unlink()
        table = sweep.main(config, tmp_path)
    assert table.empty
    said = capsys.readouterr()
    assert "ce-seed0 is being trained by another process; skipped" in said.err
    assert "1 members are trained elsewhere" in said.out


def test_executors_and_numbers_of_processes_are_checked_first(tmp_path):
    config = tiny.get_config("ce")
    with pytest.raises(InputError, match="unknown executor 'locl'; did you mean 'local'"):
        sweep.main(config, tmp_path, executor="locl")
    with pytest.raises(
        InputError, match=r"--parallel=2 has no effect with --executor=inline; add --executor=local"
    ):
        sweep.main(config, tmp_path, parallel=2)
    with pytest.raises(InputError, match=r"--parallel=-1 is negative"):
        sweep.main(config, tmp_path, parallel=-1, executor="local")


def test_the_recipe_for_an_executor_works(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text().split("### Executor\n")[1]
    module = ModuleType("shuffled")
    exec(re.search(r"```python\n(.*?)```", text, re.S).group(1), module.__dict__)
    monkeypatch.setitem(executors.EXECUTORS._table, "shuffled", module)
    monkeypatch.setattr(executors, "FLAGS", executors.FLAGS | module.FLAGS)
    ran = []
    monkeypatch.setattr(inline, "run_member", lambda config, folder: ran.append(folder.name))
    members = [Member(f"ce-seed{seed}", tiny.get_config(), {}) for seed in range(6)]
    engine, values = executors.chosen("shuffled", {"order": 1})
    ended = [member.name for member, _ in engine.run(members, tmp_path, print, **values)]
    assert ended == ran and sorted(ran) == [member.name for member in members] != ran
    with pytest.raises(InputError, match=r"--order=1 has no effect.*--executor=shuffled"):
        executors.chosen("inline", {"order": 1})
