"""Trains every combination of objectives, seeds and settings, and compares them paired by seed."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from ml_collections import ConfigDict

from gini_jax.analysis.page import is_up_to_date
from gini_jax.analysis.report import write_report
from gini_jax.analysis.sweep_tables import write_csv, write_record, write_tables
from gini_jax.data import dataset_shapes
from gini_jax.errors import Busy, InputError, RunError, Stopped, unknown_name
from gini_jax.modes import executors
from gini_jax.modes.members import Member, member_command, members_of, seeds_of
from gini_jax.storage import refuse_patterns
from gini_jax.training.experiment import check_before_data
from gini_jax.training.workdir import check_workdir, holds_result, make_workdir

FLAGS: dict[str, Any] = {
    "objectives": (None, str, "Objectives, separated by commas; that of the config by default."),
    "seeds": (
        None,
        str,
        "Seeds, separated by commas, or FIRST-LAST; that of the config if left out.",
    ),
    "vary": ([], list, "SETTING=VALUE,VALUE,...; may be given several times."),
    "search": (
        None,
        str,
        "random: --trials draws of the settings that --vary gives, as values or"
        " as log(LOW,HIGH) or uniform(LOW,HIGH); the best by validation accuracy.",
    ),
    "trials": (0, int, "How many settings a search tries for each objective."),
    "executor": (
        "inline",
        str,
        "How members run: inline, one after the other; local, side by side in processes, each with"
        " a device, or some cores, of its own; slurm, as the jobs of a cluster.",
    ),
    **executors.FLAGS,
    "dry_run": (False, bool, "Only print the members' own commands, one per line."),
    "command": ((), tuple, ""),
}


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    objectives: str | None = None,
    seeds: str | None = None,
    vary: Sequence[str] = (),
    search: str | None = None,
    trials: int = 0,
    executor: str = "inline",
    dry_run: bool = False,
    command: Sequence[str] = (),
    **settings: Any,
) -> pd.DataFrame:
    """Runs a sweep; finished members are not run again, and interrupted ones are resumed.

    Args:
        config: the settings that all members share.
        workdir: the sweep's folder; each member has its own folder in it.
        objectives: separated by commas; that of the config by default.
        seeds: separated by commas, or `FIRST-LAST`; that of the config by default.
        vary: `SETTING=VALUE,VALUE,...`, each; in a search also `SETTING=log(LOW,HIGH)` or
            `SETTING=uniform(LOW,HIGH)`.
        search: `random`, to draw settings instead of taking all combinations.
        trials: how many settings a search draws; the draws follow from the config's seed.
        executor: how members run: `inline`, `local` or `slurm`.
        dry_run: only print the members' commands.
        command: the arguments of the command line that all members share, for `dry_run`.
        **settings: the executor's flags, with underscores: `parallel=2` with `local`,
            `slurm_partition="gpu"` with `slurm`.

    Returns:
        What sweep.csv holds: one row per finished member.

    Raises:
        InputError: before anything runs: the objectives, seeds or settings are wrong, the workdir
            holds a run, or a member's folder holds a run of another config.
        RunError: some members failed; the others are finished, and the table is written.
        Stopped: a signal stopped a member; what is finished is in the table.
    """
    names = (objectives or config.objective).split(",")
    _check_search(search, trials, vary)
    engine, values = executors.chosen(executor, settings)
    members = members_of(config, names, seeds_of(seeds or str(config.seed)), vary, trials)
    if dry_run:
        return _print_commands(members, workdir, command)
    _check_processes(executor)
    _check_data_and_folder(config, workdir, search)
    if hasattr(engine, "check"):
        engine.check(workdir, **values)
    _prepare(workdir, members, search)
    if _is_done(members, workdir):
        return write_csv(workdir)
    failed, busy = run_members(members, workdir, engine.run, values)
    table = write_tables(workdir)
    if report := config.report and not (table.empty or search):  # a search sees no test split
        write_report(workdir)
    print(f"written to {workdir}: sweep.csv, sweep.md" + ", report.html" * report)
    _tell_of_others([member.name for member in members], failed, busy)
    return table


def _is_done(members: Sequence[Member], workdir: Path) -> bool:
    """Whether all members have ended and the page shows them; then it says so."""
    ended = all(holds_result(workdir / member.name, member.config) for member in members)
    if not (ended and is_up_to_date([workdir])):
        return False
    page = workdir / "report.html"
    print(f"nothing to do: all {len(members)} members have ended, and {page} shows them")
    return True


def _print_commands(
    members: Sequence[Member], workdir: Path, command: Sequence[str]
) -> pd.DataFrame:
    """Prints the members' own commands, once all of them are checked."""
    for member in members:
        _check_member(member)
    for member in members:
        print(member_command(member, workdir, command))
    return pd.DataFrame()


def _prepare(workdir: Path, members: Sequence[Member], search: str | None) -> None:
    """Makes the sweep's folder, checks all members before the first one trains, and lists them."""
    make_workdir(workdir)
    for member in members:
        refuse_patterns(workdir / member.name)
        _check_member(member)
        if (workdir / member.name).exists():
            check_workdir(workdir / member.name, member.config, sweep=workdir)
    write_record(workdir, {x.name: x.changes for x in members}, search is not None)


def _tell_of_others(names: Sequence[str], failed: dict[str, str], busy: Sequence[str]) -> None:
    """Says which members are trained elsewhere, and raises RunError if some failed."""
    if busy:
        done = [name for name in names if name not in {*busy, *failed}]
        print(f"done: {', '.join(done) or 'none yet'}")
        print(f"{len(busy)} members are trained elsewhere; call this again for the whole table")
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise RunError(
            f"{len(failed)} of {len(names)} members failed; the same command tries them again:\n"
            f"{reasons}"
        )


def _check_data_and_folder(config: ConfigDict, workdir: Path, search: str | None) -> None:
    """Refuses a search without validation images, and a folder that holds a run."""
    if search and not dataset_shapes(config.dataset).splits["val"].labels.shape[0]:
        raise InputError(
            "--search=random chooses by validation accuracy, but there is no validation split; set "
            "--config.dataset.val_size, such as 200"
        )
    if (workdir / "config.json").exists():
        raise InputError(
            f"workdir {str(workdir)!r} holds a run; give the sweep a folder of its own, such as "
            f"--workdir={workdir}_sweep"
        )


def _check_processes(executor: str) -> None:
    """Refuses a sweep in several processes, or one that holds the devices of members' processes."""
    if jax.distributed.is_initialized() if executor != "inline" else jax.process_count() > 1:
        raise InputError(
            "--mode=sweep runs in one process; print its members' commands with --dry_run, and "
            "start each of them on all hosts"
        )


def _check_member(member: Member) -> None:
    """Refuses a member whose config is wrong for every data set; the error names the member."""
    try:
        check_before_data(member.config)
    except InputError as error:
        raise InputError(f"{member.name}, a member of this sweep: {error}") from error


def _check_search(search: str | None, trials: int, vary: Sequence[str]) -> None:
    """Refuses a search without its trials or settings, and trials without a search."""
    if search not in (None, "random"):
        raise unknown_name("search", search, ["random"])
    if search and (trials < 1 or not vary):
        raise InputError(
            "--search=random needs --trials and --vary, such as --trials=20 "
            "--vary='schedule.learning_rate=log(0.001,0.3)'"
        )
    if trials and not search:
        raise InputError(f"--trials={trials} has no effect without --search=random; add that")


def run_members(
    members: Sequence[Member],
    workdir: Path,
    run: Callable[..., Iterator[tuple[Member, Exception | None]]],
    values: dict[str, Any],
) -> tuple[dict[str, str], list[str]]:
    """Trains the unfinished members.

    Args:
        members: the sweep's members.
        workdir: the sweep's folder.
        run: the executor's function; see `gini_jax.modes.executors`.
        values: the values of the executor's flags.

    Returns:
        By name, the reasons why members failed; and the names of members trained elsewhere.
    """
    left = [x for x in members if not holds_result(workdir / x.name, x.config)]
    failed: dict[str, str] = {}
    busy: list[str] = []
    start, ended = time.monotonic(), 0

    def starting(what: str) -> None:
        done = len(members) - len(left) + ended
        time_left = _time_left(start, ended, len(left) - ended)
        _say(f"sweep: {done} of {len(members)} members done{time_left}; {what}")

    try:
        for member, error in run(left, workdir, starting, **values) if left else ():
            ended += 1
            if isinstance(error, Busy):
                busy.append(member.name)
                _say(f"sweep: {member.name} {error}")
            elif error is not None:
                failed[member.name] = f"{type(error).__name__}: {error}"
            write_csv(workdir)
    except Stopped:
        write_csv(workdir)
        raise
    good, seconds = len(members) - len(failed) - len(busy), time.monotonic() - start
    _say(f"sweep: {good} of {len(members)} members done, {_minutes(seconds)}")
    return failed, busy


def _time_left(start: float, ran: int, left: int) -> str:
    if not ran:
        return ""
    return f", about {_minutes((time.monotonic() - start) / ran * left)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
