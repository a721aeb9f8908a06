"""Draws pictures of method.md and results.md: `PYTHONPATH=. python docs/figures.py`, 2 minutes."""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd

import gini_jax
from configs import digits
from docs.frozen_tables import TITLES, cells, compared, rows_of
from gini_jax import losses
from gini_jax.analysis.sensitivity import sensitivity
from gini_jax.data import load_dataset
from gini_jax.drawing import COLOURS
from gini_jax.losses import class_profile, class_sums, gini_loss, kl_loss
from gini_jax.losses.pairs import cosine
from gini_jax.modes.train import main as train

DOCS = Path(__file__).resolve().parent
SWEEPS = DOCS.parent / "results" / "sweeps"
PRUNED = ("ce", "gini_kl", "mutual_information", "supcon", "center")


def profiles_of(objective: str) -> np.ndarray:
    """Class profiles of stage 4 on the digits' test split, after training."""
    config = digits.get_config(objective)
    with tempfile.TemporaryDirectory() as workdir:
        train(config, Path(workdir), devices=jax.devices()[:1])
        trained = gini_jax.load(workdir)
    images, labels = load_dataset(config.dataset).splits["test"]
    features = trained.features(images)
    return np.asarray(class_profile(features["stage4"], labels, num_classes=10))


def draw(axis, profile: np.ndarray, title: str) -> None:
    """Profiles as an image, features sorted by the class that they fire for most."""
    order = np.lexsort((-profile.max(axis=1), profile.argmax(axis=1)))
    axis.imshow(profile[order], aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="none")
    axis.set_title(title)
    axis.set_xlabel("class")


def draw_profiles() -> None:
    """What training makes of the profiles, with cross-entropy alone and with the terms."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
    for axis, objective in zip(axes, ("ce", "gini_kl"), strict=True):
        profile = profiles_of(objective)
        gini = (1 - (profile**2).sum(axis=1)).mean()
        draw(axis, profile, f"{objective}: mean Gini impurity {gini:.2f}")
    axes[0].set_ylabel("feature of stage 4, sorted")
    figure.colorbar(axes[1].images[0], ax=axes, label="share of the class in the profile")
    figure.savefig(DOCS / "profiles.png", dpi=110)


def draw_frozen() -> None:
    """Each arm's difference from `ce` on features of pretrained networks, with its interval."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.2), sharey=True, layout="constrained")
    for axis, (network, cell) in zip(axes.flat, cells(), strict=True):
        metric, table = compared(network, cell)
        table = 100 * table.drop("ce")[["difference", "t_low", "t_high"]]
        places = range(len(table))[::-1]
        axis.axvspan(-0.5, 0.5, color="0.9")
        axis.axvline(0, color="0.5", lw=0.8)
        for colour, place, (_, row) in zip(COLOURS, places, table.iterrows(), strict=False):
            axis.plot([row["t_low"], row["t_high"]], [place] * 2, color=colour)
            axis.plot(row["difference"], place, "o", color=colour)
        axis.set_yticks(list(places), list(table.index))
        axis.set_title(f"{network}: {cell}", fontsize=9)
        axis.set_xlabel(f"points of {TITLES[metric]}", fontsize=8)
    figure.savefig(DOCS / "frozen_features.png", dpi=110)
    plt.close(figure)


def draw_pruned() -> None:
    """Accuracy by the number of hidden features kept, the purest or random ones."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for row in (row for row in rows_of() if row["cell"] == "all"):
        if row["arm"] not in PRUNED:
            continue
        axis = axes[int(row["network"] != "mobilenet_v2")]
        colour = COLOURS[PRUNED.index(row["arm"]) % len(COLOURS)]
        for order, style in (("purest", "-"), ("random", ":")):
            label = row["arm"] if order == "purest" else None
            means = np.mean(row["figures"][order], axis=0)
            axis.plot(row["kept"], means, style, color=colour, label=label, lw=1.3)
        axis.set(title=row["network"], xscale="log", xlabel="features kept")
        axis.set_xticks(row["kept"], row["kept"])
        axis.minorticks_off()
    axes[0].set_ylabel("mean accuracy over the classes")
    axes[0].legend(title="solid: purest; dotted: random", fontsize=8, title_fontsize=8)
    figure.savefig(DOCS / "pruning.png", dpi=110)
    plt.close(figure)


def draw_terms() -> None:
    """What each term alone, and both, make of the same 40 features of 5 classes."""
    start = jax.random.normal(jax.random.key(0), (5, 40)) + jnp.array([1.0, 0.5, 0, 0, 0])[:, None]
    labels = jnp.arange(5)

    def profile_after(gini_weight: float, kl_weight: float, steps: int = 400) -> np.ndarray:
        def loss(x):
            sums = class_sums(jax.nn.softplus(x), labels, num_classes=5)
            return gini_weight * gini_loss(sums) + kl_weight * kl_loss(sums)

        optimizer = optax.adam(0.05)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jax.grad(loss)(x), state)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
        return np.asarray(class_profile(jax.nn.softplus(x), labels, num_classes=5))

    cases = {
        "at the start": (0.0, 0.0),
        "Gini alone": (1.0, 0.0),
        "KL alone": (0.0, 1.0),
        "both": (1.0, 1.0),
    }
    figure, axes = plt.subplots(
        2, 4, figsize=(11, 5.5), height_ratios=[3, 1], layout="constrained", sharex=True
    )
    for column, (title, weights) in zip(axes.T, cases.items(), strict=True):
        profile = profile_after(*weights)
        draw(column[0], profile, title)
        column[0].set_xlabel("")
        column[1].bar(range(5), profile.mean(axis=0))
        column[1].axhline(0.2, color="black", linewidth=0.8, linestyle="--")
        column[1].set_ylim(0, 0.65)
        column[1].set_xlabel("class")
    axes[0, 0].set_ylabel("feature, sorted")
    axes[1, 0].set_ylabel("q, and t (dashed)")
    figure.savefig(DOCS / "terms.png", dpi=110)


def draw_baselines() -> None:
    """Where each loss moves the same free points of four classes, in a plane."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(np.repeat(np.arange(4), 40))
    angles = 2 * np.pi * (np.asarray(labels) + 0.5) / 4
    centres = 1.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1) + [0.5, 0.5]
    start = jnp.asarray(centres + 0.8 * rng.normal(size=(160, 2)), jnp.float32)
    directions = jnp.array([[1.0, 0.3], [-0.3, 1.0], [-1.0, -0.3], [0.3, -1.0]])  # to be learned
    comparator = losses.Comparator.create(jax.random.key(0), channels=2, hidden=16)
    by_class = {"labels": labels, "num_classes": 4}

    kinds = {
        "center": (lambda x, w: losses.center_loss(x, **by_class), ()),
        "fisher": (lambda x, w: losses.fisher_loss(x, **by_class), ()),
        "center + island": (
            lambda x, w: losses.center_loss(x, **by_class) + losses.island_loss(x, **by_class),
            (),
        ),
        "supcon": (lambda x, w: losses.supcon_loss(x, labels), ()),
        "triplet, hard": (lambda x, w: losses.triplet_loss(x, labels, margin=1.0), ()),
        "multi-similarity": (lambda x, w: losses.multi_similarity_loss(x, labels), ()),
        "proxy anchor": (lambda x, w: losses.proxy_anchor_loss(x, labels, w), directions),
        "cosface": (lambda x, w: losses.cosface_loss(cosine(x, w), labels, scale=8.0), directions),
        "arcface": (lambda x, w: losses.arcface_loss(cosine(x, w), labels, scale=8.0), directions),
        "relation": (lambda x, w: losses.relation_loss(x, labels, w, num_classes=4), comparator),
        "gini + kl": (lambda x, w: losses.discriminability_loss(x, **by_class)[0], ()),
    }
    optimizer = optax.adam(0.02)

    def moved(loss, more):
        def step(carry, _):
            points, state = carry
            gradient = jax.grad(lambda p: loss(*p))(points)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(points, updates), state), None

        first = (start, more)
        (points, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), length=150)
        return points[0]

    panels = {"start": start} | {name: moved(*kind) for name, kind in kinds.items()}
    figure, axes = plt.subplots(3, 4, figsize=(11, 8.4), layout="constrained")
    for axis, (name, points) in zip(axes.flat, panels.items(), strict=True):
        for k in range(4):
            axis.scatter(*np.asarray(points[labels == k]).T, s=9, color=COLOURS[k])
        axis.plot(0, 0, "+", color="0.4", ms=10)
        axis.set(title=name, xticks=[], yticks=[], aspect="equal")
        axis.set_adjustable("datalim")
    figure.savefig(DOCS / "baselines.png", dpi=110)


def draw_kl_gradient() -> None:
    """The KL term and its gradient as all features of one class of ten die."""
    features = jax.random.uniform(jax.random.key(0), (10, 64), minval=0.5)
    scales = np.logspace(0, -6, 25)

    def kl(scale, features):
        scaled = features.at[0].multiply(scale)
        return kl_loss(scaled, jnp.arange(10), num_classes=10)

    def gradient_norm(scale):
        scaled = features.at[0].multiply(scale)
        gradient = jax.grad(lambda x: kl_loss(x, jnp.arange(10), num_classes=10))(scaled)
        return jnp.linalg.norm(gradient[0])

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    axes[0].semilogx(scales, [kl(scale, features) for scale in scales])
    axes[0].set_ylabel("KL")
    axes[1].loglog(scales, [gradient_norm(scale) for scale in scales])
    axes[1].set_ylabel("norm of its gradient by that class's features")
    for axis in axes:
        axis.set_xlabel("activations of one class of ten, relative to the others")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    figure.savefig(DOCS / "kl_gradient.png", dpi=110)


def draw_held() -> None:
    """The Gini term's gradient ratio and the impurity of the batches, with held ratios."""
    table = pd.read_csv(SWEEPS / "caltech101_64_held_gradient_ratios.csv").query("term == 'gini'")
    groups = table[table["group"] != "gini_kl"].groupby("group", sort=False)
    figure, axes = plt.subplots(
        2, groups.ngroups, figsize=(10, 5), layout="constrained", sharex=True, sharey="row"
    )
    for (ratio, impurity), (name, runs) in zip(axes.T, groups, strict=True):
        for colour, (seed, run) in zip(COLOURS, runs.groupby("seed"), strict=False):
            ratio.semilogy(
                run["epoch"], run["gradient_ratio"], "o-", ms=3, color=colour, label=seed
            )
            impurity.plot(run["epoch"], run["value"], "o-", ms=3, color=colour)
        target = float(name.split()[1]) / 100
        ratio.axhline(target, color="#7d8590", lw=1, ls="--")
        ratio.set_title(f"held at {target:.0%}")
        ratio.legend(title="seed", fontsize=7, title_fontsize=7)
        impurity.set_xlabel("epoch")
    axes[0, 0].set_ylabel("gradient ratio of the Gini term")
    axes[0, 0].yaxis.set_major_formatter("{x:.0%}")
    axes[1, 0].set_ylabel("impurity of the batches")
    for axis in axes.flat:
        axis.axvline(5, color="black", lw=0.8, ls=":")
        axis.grid(alpha=0.3)
    figure.savefig(DOCS / "held_gradient_ratios.png", dpi=110)


def draw_term_signal() -> None:
    """How far the gradient of each term in a batch points where the true one does."""
    rows = json.loads((DOCS.parent / "results" / "term_signal.json").read_text())["rows"]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    figure, axes = plt.subplots(2, len(kinds), figsize=(10, 5), layout="constrained", sharey=True)
    for line, classes in zip(axes, (10, 100), strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            own = [row for row in rows if row["classes"] == classes and row["kind"] == kind]
            for colour, term in zip(COLOURS, own[0]["squared_cosine"], strict=False):
                style = "--" if term == "kl, present" else "-"
                values = [row["squared_cosine"][term] for row in own]
                examples = [row["examples"] for row in own]
                axis.plot(examples, values, "o" + style, ms=4, color=colour, label=term)
            axis.set_xscale("log", base=2)
            axis.set_xticks(examples, [str(n) for n in examples])
            axis.set_title(f"{classes} classes, {kind}", fontsize=8)
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("squared cosine with the true gradient", fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("examples in a batch")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(DOCS / "term_signal.png", dpi=110)


def draw_loss_scale() -> None:
    """Memory and time for a pair of SupCon, by the number of embeddings."""
    found = json.loads((DOCS.parent / "results" / "loss_scale.json").read_text())["scale"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for colour, (way, by_size) in zip(COLOURS, found.items(), strict=False):
        known = {int(n): [v for v in values if v] for n, values in by_size.items()}
        sizes = [n for n, values in known.items() if values]
        memory = [np.median([v["bytes"] for v in known[n]]) / 2**20 for n in sizes]
        times = [np.median([v["seconds"] for v in known[n]]) / n**2 * 1e9 for n in sizes]
        for axis, values in zip(axes, (memory, times), strict=True):
            axis.plot(sizes, values, "o-", ms=4, color=colour, label=way)
    axes[0].axhline(8 * 1024, color="black", lw=0.8, ls=":")
    axes[0].set_ylabel("largest memory, MiB")
    axes[1].set_ylabel("time for a pair, ns")
    for axis in axes:
        axis.set_xscale("log", base=4)
        axis.set_yscale("log")
        axis.set_xticks([1024, 4096, 16384, 65536], ["1,024", "4,096", "16,384", "65,536"])
        axis.set_xlabel("embeddings")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(DOCS / "loss_scale.png", dpi=110)


def draw_settings() -> None:
    """Accuracy by each setting that was varied alone."""
    table = pd.read_csv(SWEEPS / "caltech101_64_sensitivity.csv")
    figure = sensitivity(table[~table["group"].str.contains("made up")])
    figure.savefig(DOCS / "sensitivity.png", dpi=110)


if __name__ == "__main__":
    draw_settings()
    draw_loss_scale()
    draw_frozen()
    draw_pruned()
    draw_held()
    draw_term_signal()
    draw_terms()
    draw_baselines()
    draw_kl_gradient()
    draw_profiles()
