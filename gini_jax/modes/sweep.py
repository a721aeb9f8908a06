"""Trains every combination of objectives, seeds and settings, and compares them paired by seed."""

import ast
import contextlib
import itertools
import json
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd
from ml_collections import ConfigDict

from gini_jax.analysis.report import write_report
from gini_jax.analysis.statistics import METRICS, compare, markdown
from gini_jax.config import all_rows
from gini_jax.errors import InputError, RunError, Stopped, unknown_name
from gini_jax.losses.terms import PRESETS, objective_name
from gini_jax.modes import train
from gini_jax.storage import add, log_file, write
from gini_jax.training.experiment import check_before_data
from gini_jax.training.workdir import check_workdir, make_workdir, saved_config

FLAGS: dict[str, Any] = {
    "objectives": (None, str, "Objectives, separated by commas; that of the config by default."),
    "seeds": (
        None,
        str,
        "Seeds, separated by commas, or FIRST-LAST; that of the config if left out.",
    ),
    "vary": ([], list, "SETTING=VALUE,VALUE,...; may be given several times."),
    "dry_run": (False, bool, "Only print the members' own commands, one per line."),
    "command": ((), tuple, ""),
}


# What --vary cannot vary, and what does.
_VARIED_BY = {
    "seed": "--seeds",
    "objective": "--objectives",
    "model.name": "one sweep per network, each with its own --config",
}


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        config: its settings.
        changes: the settings that the sweep varies, by path, besides objective and seed.
    """

    name: str
    config: ConfigDict
    changes: dict[str, Any]


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    objectives: str | None = None,
    seeds: str | None = None,
    vary: Sequence[str] = (),
    dry_run: bool = False,
    command: Sequence[str] = (),
) -> pd.DataFrame:
    """Runs a sweep; finished members are not run again, and interrupted ones are resumed.

    Args:
        config: the settings that all members share.
        workdir: of the sweep; each member has a folder of its own in it.
        objectives: separated by commas; that of the config by default.
        seeds: separated by commas, or `FIRST-LAST`; that of the config by default.
        vary: `SETTING=VALUE,VALUE,...`, each.
        dry_run: only print the members' commands.
        command: the arguments of the command line that all members share, for `dry_run`.

    Returns:
        What sweep.csv holds: one row per finished member.

    Raises:
        InputError: the objectives, seeds or settings are wrong; before anything runs.
        RunError: some members failed; the others are finished, and the table is written.
        Stopped: a signal stopped a member; what is finished is in the table.
    """
    names = (objectives or config.objective).split(",")
    members = members_of(config, names, seeds_of(seeds or str(config.seed)), vary)
    if dry_run:
        for member in members:
            print(member_command(member, workdir, command))
        return pd.DataFrame()
    make_workdir(workdir)
    start = time.monotonic()
    failed = run_members(members, workdir)
    table = write_results(workdir, members)
    write(workdir / "sweep.md", sweep_markdown(table))
    good = len(members) - len(failed)
    _say(f"sweep: {good} of {len(members)} members done, {_minutes(time.monotonic() - start)}")
    if not table.empty:
        write_report(workdir)
    print(f"written to {workdir}: sweep.csv, sweep.md, report.html")
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise RunError(
            f"{len(failed)} of {len(members)} members failed; the same command tries them again:\n"
            f"{reasons}"
        )
    return table


def run_members(members: Sequence[Member], workdir: Path) -> dict[str, str]:
    """Trains the unfinished members; returns, by name, the reasons why some failed."""
    failed: dict[str, str] = {}
    start, ran = time.monotonic(), 0
    for done, member in enumerate(members):
        folder = workdir / member.name
        if finished(member, folder):
            continue
        left = _time_left(start, ran, len(members) - done)
        _say(f"sweep: {done} of {len(members)} members done{left}; now {member.name}")
        try:
            run_member(member, folder)
        except Stopped as stopped:
            write_results(workdir, members)
            raise Stopped(f"{member.name}: {stopped}", stopped.status) from stopped
        except Exception as error:
            failed[member.name] = f"{type(error).__name__}: {error}"
            add(folder / "log.txt", traceback.format_exc())
        ran += 1
        jax.clear_caches()
        write_results(workdir, members)
    return failed


def members_of(
    config: ConfigDict, objectives: Sequence[str], seeds: Sequence[int], vary: Sequence[str]
) -> list[Member]:
    """All combinations; seeds vary slowest, so that each seed soon has all objectives.

    A term that the config weights has this weight in every objective that has the term. Its weight
    is varied only in these objectives.

    Raises:
        InputError: a name is unknown, a value is of another type than its setting, or no objective
            has a term that the config weights.
    """
    settings = dict(_parse_vary(config, text) for text in vary)
    terms = {objective: terms_of(config, objective) for objective in objectives}
    _check_used(config, terms)
    members: dict[str, Member] = {}
    for seed, objective in itertools.product(seeds, objectives):
        for values in itertools.product(*settings.values()):
            member = config.copy_and_resolve_references()
            member.seed = seed
            with member.unlocked():
                member.loss.terms = ConfigDict(terms[objective])
            changes = {}
            for path, value in zip(settings, values, strict=True):
                term = path.removeprefix("loss.terms.")
                if term == path or term in member.loss.terms:
                    member.update_from_flattened_dict({path: value})
                    changes[path] = value
            member.objective = objective_name(member.loss.terms)
            parts = [f"{path}={_short(value)}" for path, value in changes.items()]
            name = "-".join([objective, *parts, f"seed{seed}"])
            members.setdefault(name, Member(name, member, changes))
    return list(members.values())


def terms_of(config: ConfigDict, objective: str) -> dict[str, float]:
    """The terms of an objective, with the weights that the config gives them.

    Raises:
        InputError: the objective is unknown.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config("gini_kl")
        >>> config.loss.terms.gini = 0.1
        >>> terms_of(config, "gini"), terms_of(config, "collision_kl")
        ({'gini': 0.1}, {'collision': 0.5, 'kl': 0.5})
    """
    own = config.loss.terms.to_dict()
    if objective == objective_name(own):
        return own
    if objective not in PRESETS:
        raise unknown_name("objective", objective, PRESETS)
    return {name: own.get(name) or weight for name, weight in PRESETS[objective].items()}


def _check_used(config: ConfigDict, terms: dict[str, dict[str, float]]) -> None:
    """Refuses a weight, other than a preset's, of a term that no objective has."""
    usual = PRESETS.get(config.objective, {})
    for name, weight in config.loss.terms.items():
        if weight != usual.get(name) and not any(name in own for own in terms.values()):
            raise InputError(
                f"loss.terms.{name}={weight:g} has no effect: no objective of the sweep "
                f"({', '.join(terms)}) has the term {name}; leave it out, or give an objective "
                "that has the term in --objectives"
            )


def seeds_of(text: str) -> list[int]:
    """The seeds that a flag names.

    Examples:
        >>> seeds_of("0,1,5"), seeds_of("3-5")
        ([0, 1, 5], [3, 4, 5])
    """
    try:
        first, dash, last = text.partition("-")
        if dash:
            return list(range(int(first), int(last) + 1))
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds={text}: give whole numbers, as in 0,1,2 or 0-9") from error


def finished(member: Member, folder: Path) -> bool:
    """Whether a member's folder holds its result.

    Raises:
        InputError: it holds the result of another config.
    """
    if not (folder / "result.json").exists():
        return False
    check_workdir(folder, member.config)
    return int(saved_config(folder).num_epochs) == member.config.num_epochs  # else it is extended


def run_member(member: Member, folder: Path) -> None:
    """Trains a member; what it prints goes to log.txt in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    check_before_data(member.config)
    with log_file(folder / "log.txt") as log, _printing_to(log):
        train.main(member.config, folder)


def member_command(member: Member, workdir: Path, shared: Sequence[str]) -> str:
    """The command that trains a member on its own."""
    objective = member.name.partition("-")[0]
    files = [arg.partition("=")[2] for arg in shared if arg.startswith("--config=")]
    file = files[-1] if files else "configs/digits.py"
    if objective in PRESETS:
        file = f"{file.partition(':')[0]}:{objective}"
    rest = [
        arg
        for arg in shared
        if not arg.startswith("--config=") and _term_in(arg) in {"", *member.config.loss.terms}
    ]
    own = [f"--config.{path}={value}" for path, value in member.changes.items()]
    arguments = [
        f"--config={file}",
        f"--workdir={workdir / member.name}",
        *rest,
        f"--config.seed={member.config.seed}",
        *own,
    ]
    return shlex.join(["python", "launch.py", *arguments])


def write_results(workdir: Path, members: Sequence[Member]) -> pd.DataFrame:
    """Writes sweep.csv from the results so far."""
    rows = []
    for member in members:
        path = workdir / member.name / "result.json"
        if path.exists():
            settings = {f"config.{key}": value for key, value in member.changes.items()}
            group = member.name.rpartition("-seed")[0]
            result = json.loads(path.read_text())
            rows.append({"member": member.name, "group": group, **settings, **result})
    table = pd.DataFrame(rows)
    write(workdir / "sweep.csv", table.to_csv(index=False))
    return table


def sweep_markdown(table: pd.DataFrame) -> str:
    """The comparison of every metric, as Markdown."""
    if table.empty:
        return "No member has finished yet.\n"
    first = table.iloc[0]
    baseline = "ce" if "ce" in set(table["group"]) else str(first["group"])
    parts = [
        f"# {first['config_name']}: {len(table)} runs\n",
        f"On {first['device']}, jax {first['jax_version']}, {first['epochs']} epochs. Differences "
        f"from `{baseline}` are paired by seed. Holm's correction is over the objectives of each "
        "table. With one seed there is no p-value.\n",
    ]
    for metric, (title, larger) in METRICS.items():
        if metric in table and table[metric].notna().any():
            compared = compare(table, metric, baseline, larger)
            parts.append(f"## {title}\n\n{markdown(compared, baseline)}\n")
    return "\n".join(parts)


def _parse_vary(config: ConfigDict, text: str) -> tuple[str, list[Any]]:
    """`SETTING=VALUE,VALUE` as a path and values of the setting's type."""
    from gini_jax.losses.terms import TERMS

    path, equals, values = text.partition("=")
    path = path.removeprefix("config.")
    rows = all_rows(config)
    is_term = path.removeprefix("loss.terms.") in TERMS and path.startswith("loss.terms.")
    if not equals or not (path in rows or is_term):
        raise unknown_name("setting in --vary", path, rows)
    if path in _VARIED_BY:
        raise InputError(f"--vary={text}: {path} cannot be varied; use {_VARIED_BY[path]}")
    try:
        parsed = list(ast.literal_eval(f"[{values}]"))
    except (ValueError, SyntaxError):
        parsed = values.split(",")
    wanted = float if is_term else type(rows[path].default)
    for value in parsed:
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise InputError(
                f"--vary={text}: {value!r} is not of type {wanted.__name__}, such as "
                f"{rows[path].default if path in rows else 0.5!r}"
            )
    return path, [float(v) if wanted is float else v for v in parsed]


def _term_in(argument: str) -> str:
    """The term whose weight an argument sets; "" for none."""
    name, _, _ = argument.lstrip("-").partition("=")
    return name.removeprefix("config.loss.terms.") if name.startswith("config.loss.terms.") else ""


def _short(value: Any) -> str:
    """A value as a part of a folder's name."""
    return "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


@contextlib.contextmanager
def _printing_to(log: Any) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _time_left(start: float, ran: int, left: int) -> str:
    if not ran:
        return ""
    return f", about {_minutes((time.monotonic() - start) / ran * left)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
