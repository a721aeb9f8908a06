"""Tables of results/frozen_features.json: objectives on pretrained features, each tuned."""

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from docs.speed_tables import RESULTS, as_table
from gini_jax.analysis.statistics import compare_by_seed, interval, number

TITLES = {
    "class_accuracy": "mean accuracy over the classes",
    "recall_at_1": "recall@1",
}


@cache
def report() -> dict[str, Any]:
    """What the file holds."""
    return json.loads((RESULTS / "frozen_features.json").read_text())


def rows_of() -> list[dict[str, Any]]:
    """A row for each network, kind of data and arm."""
    return report()["rows"]


def compared(network: str, cell: str) -> tuple[str, pd.DataFrame]:
    """The metric of a kind of data, and its comparison by seed with `ce`."""
    own = [row for row in rows_of() if (row["network"], row["cell"]) == (network, cell)]
    table = pd.DataFrame(
        {"group": row["arm"], "seed": seed, "value": value}
        for row in own
        for seed, value in enumerate(row["figures"][row["metric"]])
    )
    return own[0]["metric"], compare_by_seed(table, "value")


def cells() -> list[tuple[str, str]]:
    """The pairs of network and kind of data in the file."""
    return list(dict.fromkeys((row["network"], row["cell"]) for row in rows_of()))


def frozen() -> str:
    """Every arm against `ce`, in points, for each network and kind of data."""
    heads = ["network", "data", "arm", "mean ± sd", "difference in points", "95 % interval (t)"]
    heads += ["Holm", "p (TOST, ±0.5 points)", "better in", "learning rate", "weight decay"]
    heads.append("strength")
    settings = {(r["network"], r["cell"], r["arm"]): r["settings"] for r in rows_of()}
    rows = []
    for network, cell in cells():
        _, table = compared(network, cell)
        for arm, row in table.iterrows():
            own = settings[network, cell, str(arm)]
            line = [network, f"`{cell}`", f"`{arm}`", f"{row['mean']:.4f} ± {row['sd']:.4f}"]
            line += ["-"] * 5
            if arm != "ce":
                line[4] = f"{100 * row['difference']:+.2f}"
                line[5] = interval(100 * row["t_low"], 100 * row["t_high"])
                line[6], line[7] = number(row["holm_t"], 3), number(row["p_within_0.5"], 3)
                line[8] = f"{row['better']:.0f} of {row['pairs']:.0f}"
            strength = "-" if arm == "ce" else f"{own['strength']:.2g}"
            rows.append([*line, f"{own['rate']:.2g}", f"{own['decay']:.2g}", strength])
    seconds = np.median([row["seconds"] for row in rows_of()])
    note = (
        f"n = 20 seeds; {report()['steps']} steps; `held_out` is recall@1, the others mean "
        f"accuracy over the classes. 20 seeds of an arm took {seconds:.0f} s on "
        f"{report()['cores']} core (median; {report()['device']}, jax {report()['jax']})."
    )
    return f"{as_table(heads, rows)}\n\n{note}"


def pruned() -> str:
    """Accuracy of a refitted head by the number of features kept, with all training images."""
    own = [row for row in rows_of() if row["cell"] == "all"]
    rows = []
    for row in own:
        for order in ("purest", "random"):
            means = np.mean(row["figures"][order], axis=0)
            rows.append([row["network"], f"`{row['arm']}`", order, *(f"{x:.3f}" for x in means)])
    return as_table(["network", "arm", "chosen", *map(str, own[0]["kept"])], rows)


def frozen_gains() -> str:
    """The difference of each arm from tuned `ce`, in points, by network and kind of data."""
    found: dict[str, dict[str, str]] = {}
    for network, cell in cells():
        _, table = compared(network, cell)
        for arm, row in table.iterrows():
            if arm == "ce":
                continue
            proven = f"**{100 * row['difference']:+.1f}**"
            shown = proven if row["holm_t"] < 0.05 else f"{100 * row['difference']:+.1f}"
            found.setdefault(str(arm), {})[f"{network}, `{cell}`"] = shown
    heads = list(next(iter(found.values())))
    rows = [[f"`{arm}`", *(cells.get(head, "-") for head in heads)] for arm, cells in found.items()]
    note = "In bold: significant over 20 seeds after Holm's correction."
    return "\n".join([as_table(["", *heads], rows), "", note])


FROZEN_TABLES = {"frozen": frozen, "frozen_gains": frozen_gains, "pruned": pruned}
