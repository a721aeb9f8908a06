"""The members of a sweep, and the command that runs each of them."""

import ast
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gini_jax.config.change import changed, known_settings, set_terms, set_value
from gini_jax.config.registry import SETTINGS, Setting, flattened
from gini_jax.config.values import fitting, written
from gini_jax.data.cache import short_name
from gini_jax.errors import InputError, unknown_name
from gini_jax.losses.terms import PRESETS, objective_name, weight_of
from gini_jax.modes.search import Range, draws, range_of

# Settings that --vary cannot vary, and what to do instead.
_VARIED_BY = {
    "seed": "use --seeds",
    "objective": "use --objectives",
    "model.name": "run one sweep per network, each with its own --config",
}
_TERMS = "loss.terms."


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: the name of its folder.
        config: its settings.
        changes: the settings that the sweep varies, by path, besides objective and seed.
    """

    name: str
    config: ConfigDict
    changes: dict[str, Any]


def members_of(
    config: ConfigDict,
    objectives: Sequence[str],
    seeds: Sequence[int],
    vary: Sequence[str],
    trials: int = 0,
) -> list[Member]:
    """All combinations; seeds vary slowest, so that each seed soon has all objectives.

    With `trials`, that many combinations of the varied settings are drawn at random. If the config
    sets a term's weight, every objective that has the term uses it. A term's weight and settings
    apply, and are varied, only in objectives that have the term. Likewise, the settings of a
    schedule or an optimiser apply, and are varied, only in members that have it.

    Raises:
        InputError: a name is unknown, a value is of another type than its setting, or no objective
            has a term that the config weights.
    """
    if len(set(objectives)) < len(objectives):
        raise InputError(f"--objectives={','.join(objectives)} names one twice; name each once")
    settings = _parse_vary(config, vary, ranges=trials > 0)
    terms = {objective: terms_of(config, objective) for objective in objectives}
    _check_used(config, terms, list(settings))
    if trials:
        combinations = draws(settings, trials, config.seed)
    else:
        every = itertools.product(*settings.values())
        combinations = [dict(zip(settings, values, strict=True)) for values in every]
    members: dict[str, Member] = {}
    for seed, objective in itertools.product(seeds, objectives):
        for combination in combinations:
            member = config.copy_and_resolve_references()
            member.seed = seed
            set_terms(member, terms[objective])
            for path in combination:
                if path in [f"{section}.name" for section in SETTINGS.sections]:
                    set_value(member, path, combination[path])
            known = SETTINGS.of(member)
            changes = {
                path: value for path, value in combination.items() if _is_read(path, member, known)
            }
            changed(member, changes)
            parts = [f"{path}={_short(value)}" for path, value in changes.items()]
            name = "-".join([objective, *parts, f"seed{seed}"])
            if len(name.encode()) > 200:  # a file's name has at most 255 bytes
                name = f"{objective}-{short_name('-'.join(parts))}-seed{seed}"
            first = members.setdefault(name, Member(name, member, changes))
            if first.changes != changes:
                raise InputError(
                    f"two members of the sweep would share the folder {name}: "
                    f"{first.changes} and {changes}; run a sweep for each of these values"
                )
    return list(members.values())


def terms_of(config: ConfigDict, objective: str) -> dict[str, Any]:
    """The terms of an objective, by key, with the settings that the config gives them.

    Raises:
        InputError: the objective is unknown.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config("gini_kl")
        >>> config.loss.terms.gini.weight = 0.1
        >>> terms_of(config, "gini"), list(terms_of(config, "renyi_kl"))
        ({'gini': {'weight': 0.1}}, ['renyi', 'kl'])
    """
    own = config.loss.terms.to_dict()
    if objective == objective_name(own):
        return own
    if objective not in PRESETS:
        raise unknown_name("objective", objective, PRESETS)
    return {name: own.get(name, weight) for name, weight in PRESETS[objective].items()}


def _check_used(
    config: ConfigDict, terms: dict[str, dict[str, Any]], settings: Sequence[str]
) -> None:
    """Refuses weights, other than a preset's, that no objective uses."""
    usual = PRESETS.get(config.objective, {})
    given = {}
    for name, section in config.loss.terms.items():
        for key, value in flattened(section).items():
            path = f"{_TERMS}{name}.{key}".removesuffix(".weight")
            default = SETTINGS.of(config)[f"{_TERMS}{name}.{key}"].default
            if value != (usual.get(name) if key == "weight" else default):
                given[f"{path}={value}"] = name
    given |= {f"--vary={path}": _term_of(path) for path in settings if _term_of(path)}
    for text, name in given.items():
        if not any(name in own for own in terms.values()):
            raise InputError(
                f"{text} has no effect: no objective of the sweep ({', '.join(terms)}) has the "
                f"term {name}; leave it out, or give an objective that has the term in --objectives"
            )
        others = [own for key, own in terms.items() if key != config.objective]
        if any(name in own and not weight_of(own[name]) for own in others):
            raise InputError(
                f"{text} takes the term {name} out of the objectives of the sweep "
                f"({', '.join(terms)}); leave it out, or give --objectives without the term"
            )


def _is_read(path: str, member: ConfigDict, known: Mapping[str, Any]) -> bool:
    """Whether a member has the term, schedule or optimiser that a setting belongs to."""
    if path.partition(".")[0] in SETTINGS.sections and path not in known:
        return False
    return _term_of(path) in ("", *member.loss.terms)


def _term_of(path: str) -> str:
    """The term that the setting at a path belongs to; "" if none.

    Examples:
        >>> _term_of("loss.terms.supcon.temperature"), _term_of("seed")
        ('supcon', '')
    """
    return path.removeprefix(_TERMS).partition(".")[0] if path.startswith(_TERMS) else ""


def seeds_of(text: str) -> list[int]:
    """The seeds that a flag names.

    Examples:
        >>> seeds_of("0,1,5"), seeds_of("3-5")
        ([0, 1, 5], [3, 4, 5])
    """
    try:
        first, dash, last = text.partition("-")
        between = range(int(first), int(last) + 1) if dash else map(int, text.split(","))
        seeds = list(between)
    except ValueError as error:
        raise InputError(f"--seeds={text}: give whole numbers, as in 0,1,2 or 0-9") from error
    if not seeds:
        raise InputError(f"--seeds={text} names no seed; give the smaller first: {last}-{first}")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds={text} names a seed twice; name each once")
    return seeds


def member_command(member: Member, workdir: Path, shared: Sequence[str]) -> str:
    """The command that trains a member on its own.

    Args:
        member: a member of a sweep.
        workdir: the sweep's folder.
        shared: the command-line arguments that all members share.
    """
    objective = member.name.partition("-")[0]
    files = [arg.partition("=")[2] for arg in shared if arg.startswith("--config=")]
    file = files[-1] if files else "configs/digits.py"
    if objective in PRESETS:
        file = f"{file.partition(':')[0]}:{objective}"
    rows, there = SETTINGS.of(member.config), flattened(member.config)
    own = {"seed": member.config.seed, **member.changes}
    for path, value in there.items():
        if path.startswith(_TERMS) and (path.endswith(".weight") or value != rows[path].default):
            own.pop(path, None)
            own[path.removesuffix(".weight")] = value
    lacking = [
        f"config.{path}"
        for path in (arg.removeprefix("--config.").partition("=")[0] for arg in shared)
        if path.partition(".")[0] in SETTINGS.sections and path not in there
    ]
    left_out = ("config", "config.seed", "config.objective", f"config.{_TERMS}", *lacking)
    arguments = [
        f"--config={file}",
        f"--workdir={workdir / member.name}",
        *without(shared, left_out),
        *(f"--config.{path}={value}" for path, value in own.items()),
    ]
    return shlex.join(["python", "launch.py", *arguments])


def without(arguments: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Arguments without some flags and their values; a flag that ends in a dot means a section.

    Examples:
        >>> list(without(["--a=1", "--b", "2", "--c.d", "3", "--e=4"], ["a", "b", "c."]))
        ['--e=4']
    """
    value_follows = False
    for argument in arguments:
        if value_follows and not argument.startswith("-"):
            value_follows = False
            continue
        flag, equals, _ = argument.lstrip("-").partition("=")
        left_out = argument.startswith("-") and any(
            flag == name or (name.endswith(".") and flag.startswith(name)) for name in flags
        )
        value_follows = left_out and not equals
        if not left_out:
            yield argument


def _parse_vary(config: ConfigDict, texts: Sequence[str], ranges: bool) -> dict[str, Any]:
    """Parses texts `SETTING=VALUE,VALUE` into typed values or ranges, by path."""
    settings: dict[str, Any] = {}
    for text in sorted(texts, key=lambda text: ".name=" not in text):  # names add settings
        path, values = _parse_one(config, text, settings)
        if isinstance(values, Range) and not ranges:
            raise InputError(
                f"--vary={text}: values are drawn from a range by --search=random --trials=20; or "
                "name the values, as in 0.1,0.2"
            )
        if path in settings:
            raise InputError(f"--vary={text}: {path} is varied twice; give all its values at once")
        settings[path] = values
    given = [text.partition("=")[0].removeprefix("config.") for text in texts]
    return {path: settings[path] for path in given}


def _parse_one(
    config: ConfigDict, text: str, varied: Mapping[str, Any]
) -> tuple[str, list[Any] | Range]:
    path, equals, values = text.partition("=")
    path = path.removeprefix("config.")
    rows = _rows(config, path, varied)
    if path not in rows:
        raise unknown_name("setting in --vary", path, rows)
    if not equals or not values.strip():
        raise InputError(f"--vary={text} gives no value; give some, as in --vary={path}=1,2")
    if path in _VARIED_BY:
        raise InputError(f"--vary={text}: {path} cannot be varied here; {_VARIED_BY[path]}")
    if found := range_of(values, rows[path].default):
        return path, found
    default = rows[path].default
    try:
        try:
            parsed = ast.literal_eval(f"[{values}]")
        except (SyntaxError, TypeError, ValueError):  # words
            return path, [written(path, part, default) for part in values.split(",")]
        return path, [fitting(path, value, default) for value in parsed]
    except InputError as error:
        raise InputError(f"--vary={text}: {error}") from error


def _rows(config: ConfigDict, path: str, varied: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings that may be varied, including those of varied components."""
    rows = known_settings(config)
    for key in config.loss.terms:
        rows[f"{_TERMS}{key}"] = rows[f"{_TERMS}gini"]
    section, _, key = path.partition(".")
    if section == "augment" and ":" in key:
        rows[path] = SETTINGS.keyed["augment"].settings(key)["strength"]
    for name in varied.get(f"{section}.name", ()):
        own = SETTINGS.sections[section].settings(name)
        rows |= {f"{section}.{k}": row for k, row in own.items()}
    return rows


def _short(value: Any) -> str:
    """A value as a part of a folder's name, which may have 255 characters in all."""
    text = "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text.replace("/", "_") if len(text) <= 60 else short_name(text)
