"""Tables of what a person waits for: starts, help, errors, sweeps, reports; see `tables.py`."""

import json
from collections.abc import Callable

from docs.speed_tables import RESULTS, as_table

UNCHANGED = "report, unchanged"


def startup() -> str:
    """Seconds from the start of the program to its first step, and those of help and errors."""
    kinds = json.loads((RESULTS / "startup.json").read_text())
    parts = ("imports", "data", "step, with tracing and compilation", "all")
    names = {"imports alone": "`import jax, flax, optax`", "first": "first start"}
    rows, notes = [], []
    for kind, report in sorted(kinds.items()):
        for start, name in (names | {"second": "second start"}).items():
            own = report[start]
            cells = [f"{own[part][1]:.2f} s" if part in own else "-" for part in parts]
            rows.append([kind, name, *cells])
        low, middle, high = report["second over imports"]
        answers = ", ".join(
            f"{name} {m:.2f} ({a:.2f} to {b:.2f})"
            for name, (a, m, b) in report["answers over import jax"].items()
        )
        notes.append(
            f"{kind}, {report['cores']} cores: a second start takes {middle:.2f} ({low:.2f} to "
            f"{high:.2f}) times as long as the imports alone. Times over `import jax`: {answers}. "
            f"Medians and quartiles of {report['rounds']} alternating rounds."
        )
    table = as_table(["processor", "", *parts], rows)
    rest = "All includes the remaining set-up, such as the network's initial values."
    return "\n\n".join([table, rest, *notes])


def waiting() -> str:
    """Seconds of a sweep beside those of one run, and of calls that have nothing to do."""
    kinds = json.loads((RESULTS / "waiting.json").read_text())
    parts = list(next(iter(kinds.values()))["seconds"])
    rows, notes = [], []
    for kind, report in sorted(kinds.items()):
        rows.append([kind, *(f"{report['seconds'][part][1]:.1f} s" for part in parts)])
        low, middle, high = report["sweep over one run"]
        spread = f" ({low:.1f} to {high:.1f})" * (report["rounds"] > 1)
        over = {part: report[f"{part}, over imports"][1] for part in ("sweep, finished", UNCHANGED)}
        notes.append(
            f"{kind}, {report['cores']} cores: the sweep of {report['members']} seeds takes "
            f"{middle:.1f}{spread} times as long as one run; over the imports, "
            + ", ".join(f"{part}: {ratio:.2f}" for part, ratio in over.items())
            + f". n = {report['rounds']} round of all, beside other work on the same cores."
        )
    return "\n\n".join([as_table(["processor", *parts], rows), *notes])


START_TABLES: dict[str, Callable[[], str]] = {"startup": startup, "waiting": waiting}
