"""Tables of benches and of the theory scripts, from results/; see `tables.py`."""

import json

import pandas as pd

from docs.speed_tables import RESULTS, as_table
from gini_jax.analysis.statistics import number
from gini_jax.downstream import benches_of

# By script: the numbers that show the effect, as they are and as the table names them.
THEORY = {
    "feature_averaging": [
        "binary labels: share of the strongest cluster",
        "cluster labels: share of the strongest cluster",
        "binary labels, Gini term: share of the strongest cluster",
        "binary labels: move that changes the label",
        "cluster labels: move that changes the label",
        "binary labels, Gini term: move that changes the label",
    ],
    "implicit_bias": [
        "both layers: test error",
        "output layer: test error",
        "both layers, terms: test error",
        "both layers: rise of the margin over the last half",
    ],
    "convergence_width": [
        "quadratic loss alone: loss at width 4",
        "quadratic loss alone: loss at width 512",
        "terms, weight 0.05: loss at width 512",
    ],
    "graph_convolution": [
        "nodes: accuracy, signal 0.5",
        "graph: accuracy, signal 0.5",
        "nodes, terms: accuracy, signal 0.5",
        "graph, terms: accuracy, signal 0.5",
    ],
    "latent_tree": [
        "cosine of the first step with the operator's",
        "NT-Xent: correlation with the latents before",
        "NT-Xent: correlation with the latents after",
        "NT-Xent, terms: correlation with the latents after",
    ],
    "relation_gan": ["usual: distance at the end", "relation, triplets: distance at the end"],
    "coupled_factorisation": [
        "label and structure: accuracy, labels 0.1",
        "with enriched prior: accuracy, labels 0.1",
        "with enriched prior, terms: accuracy, labels 0.1",
        "with enriched prior: accuracy, labels 0.4",
    ],
    "subpopulation_shift": [
        "conditional less flat, all spreads",
        "standard error over the draws",
        "flat: accuracy on unseen subclasses, spread 3.0",
        "flat, terms: accuracy on unseen subclasses, spread 3.0",
        "conditional: accuracy on unseen subclasses, spread 3.0",
    ],
}


def theory() -> str:
    """Whether each script saw the effect, and by which numbers."""
    rows = []
    for name, keys in THEORY.items():
        found = json.loads((RESULTS / "theory" / f"{name}.json").read_text())
        told = "<br>".join(f"{key}: **{found[key]:.3g}**" for key in keys)
        rows.append([f"`{name}`", "yes" if found["effect_seen"] else "no", told])
    return as_table(["script", "effect seen", "numbers"], rows)


def benches() -> str:
    """Mean and spread of each number of the benches, by objective."""
    parts = {
        name: pd.read_csv(RESULTS / "sweeps" / f"benches_{name}.csv")
        for name in ("digits", "held_out")
    }
    metrics = {
        k: t for m in benches_of("all").values() for k, (t, _) in getattr(m, "KEYS", {}).items()
    }
    groups = list(dict.fromkeys(parts["digits"]["group"]))
    rows = []
    for key, title in metrics.items():
        held_out = key.startswith(("held_out", "fewshot"))
        table = parts["held_out" if held_out else "digits"]
        if key in table:
            by_group = table.groupby("group")[key]
            means, spreads = by_group.mean(), by_group.std()
            cells = [f"{number(means[g])} ± {number(spreads[g])}" for g in groups]
            rows.append([title, *cells])
    first = parts["digits"].iloc[0]
    seeds, held = (part["seed"].nunique() for part in parts.values())
    note = (
        f"`{first['config_name']}`, mean ± standard deviation over {seeds} seeds, {held} for "
        "held-out classes, the digits 5 to 9; the presets' weights, untuned. Outliers: the test "
        "images with shuffled pixels. Differences are not tested here, but in a sweep's `bench.md`."
    )
    return "\n".join([as_table(["", *(f"`{g}`" for g in groups)], rows), "", note])


def finetune_search() -> str:
    """The trials of fine-tuning, by validation accuracy."""
    table = pd.read_csv(RESULTS / "sweeps" / "finetune_search.csv")
    settings = [column for column in table if column.startswith("config.")]
    rows = []
    for _, row in table.sort_values(
        ["objective", "val_accuracy"], ascending=[True, False]
    ).iterrows():
        own = [f"{c.rpartition('.')[2]} {row[c]:g}" for c in settings if pd.notna(row[c])]
        rows.append([f"`{row['objective']}`", f"{row['val_accuracy']:.4f}", ", ".join(own)])
    return as_table(["arm", "validation accuracy", "settings"], rows)


BENCH_TABLES = {"theory": theory, "benches": benches, "finetune_search": finetune_search}
