"""Short names of groups of runs, for tables and pictures."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_SETTING = re.compile(r"-(?=[a-z_][\w.]*=)")  # where a setting begins in the name of a group


class Names(NamedTuple):
    """Short names.

    Attributes:
        short: by group, its objective and the values of what varies.
        legend: what the values stand for, in words; "" if only the objective varies.
    """

    short: dict[str, str]
    legend: str = ""


def parts_of(group: str) -> tuple[str, dict[str, str]]:
    """The objective of a group, and the settings in its name.

    Examples:
        >>> parts_of("gini_kl-optimizer.weight_decay=1e-05-batch_size=64")
        ('gini_kl', {'optimizer.weight_decay': '1e-05', 'batch_size': '64'})
    """
    objective, *settings = _SETTING.split(group)
    pairs = (setting.partition("=") for setting in settings)
    return objective, {path: value for path, _, value in pairs}


def short_names(groups: Sequence[str]) -> Names:
    """Names of groups that say each varied setting once, in the legend.

    Examples:
        >>> short_names(["ce", "kl"])
        Names(short={'ce': 'ce', 'kl': 'kl'}, legend='')
        >>> names = short_names(["ce-seed_of.x=1", "kl-seed_of.x=1", "kl-seed_of.x=2"])
        >>> list(names.short.values()), names.legend
        (['ce, 1', 'kl, 1', 'kl, 2'], 'the objective, and seed_of.x')
    """
    parts = {group: parts_of(group) for group in groups}
    varied = list(dict.fromkeys(path for _, own in parts.values() for path in own))
    if not varied:
        return Names(dict(zip(groups, groups, strict=True)))
    found: dict[str, str] = {}
    for group, (objective, own) in parts.items():
        values = [_shortened(own.get(path, "-")) for path in varied]
        name = ", ".join([objective, *values])
        found[group] = name if name not in found.values() else f"{name} ({len(found) + 1})"
    return Names(found, f"the objective, and {', '.join(varied)}")


def _shortened(value: str, most: int = 16) -> str:
    plain = value.strip("()[]").replace("'", "").rstrip(",")
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def title_of(config_name: str, groups: Sequence[str], seeds: int) -> str:
    """The title of a page about some groups, in one line.

    Examples:
        >>> title_of("digits", ["ce", "kl"], 1)
        'digits: ce, kl'
        >>> title_of("digits", [f"kl-batch_size={n}" for n in (32, 64)], 3)
        'digits: kl, 2 settings, 3 seeds'
    """
    objectives = list(dict.fromkeys(parts_of(group)[0] for group in groups))
    settings = len({tuple(parts_of(group)[1].items()) for group in groups})
    shown = ", ".join(objectives) if len(objectives) < 6 else f"{len(objectives)} objectives"
    more = [f"{settings} settings"] * (settings > 1) + [f"{seeds} seeds"] * (seeds > 1)
    return ", ".join([f"{config_name}: {shown}", *more])
