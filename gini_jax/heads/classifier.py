"""A classifier on feature vectors, in scikit-learn's terms."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from tqdm import tqdm

from gini_jax.config.registry import in_bounds
from gini_jax.errors import InputError
from gini_jax.heads.programs import Programs, keys_of, programs, terms_of
from gini_jax.heads.training import SCALE, Run, Settings

EVALUATIONS = 20  # of the validation part, at most
BOUNDS = {
    "steps": "[1, inf)",
    "batch_size": "[1, inf)",
    "learning_rate": "(0, inf)",
    "weight_decay": "[0, inf)",
    "weight": "[0, inf)",
    "label_smoothing": "[0, 1)",
    "per_class": "[0, inf)",
    "running_decay": "[0, 1)",
    "corrupted": "[0, 1)",
    "validation_fraction": "[0, 1)",
    "patience": "[1, inf)",
    "n_seeds": "[1, inf)",
}


class HeadClassifier(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """A small network on feature vectors, trained with cross-entropy and any objective.

    Features are standardised; hidden layers with a ReLU follow, on the last of which the terms act,
    and a linear layer, or a cosine layer for margins. AdamW trains it, with a learning rate that
    falls to 0 as a cosine. This is the recipe of the heads in docs/results.md.

    Args:
        objective: a preset, such as `"supcon"` or `"ce"`; a term of one's own,
            `"package.module:name"`; or terms with their weights, `{"gini": 0.5, "kl": 0.5}`.
        hidden: sizes of the hidden layers; `()`: none, and the terms have nothing to act on.
        weight: what the weights of the terms are multiplied by.
        loss_settings: settings of terms, such as `{"supcon.temperature": 0.2}`.
        steps: of training.
        batch_size: examples in a batch; all of them, if there are fewer.
        learning_rate: at the start.
        weight_decay: of the layers' weights, relative to the learning rate. Of 0.01, 0.1 and 1, the
            default was best for `ce` and `supcon` on a validation part of Caltech-101.
        label_smoothing: share of each label that goes to all classes.
        per_class: examples of each class that a batch holds, if it holds a class; 0: batches are
            drawn without regard to classes.
        running_decay: of running sums, for objectives of class sums.
        corrupted: for `simclr`, which compares two views of an example: the share of a view's
            features that come from other examples (SCARF, arXiv 2106.15147).
        superclasses: for `hierarchy`: a mapping from each class to its superclass.
        class_weight: `"balanced"`, or a mapping from classes to weights; None: all are 1.
        unlabelled: the value in `y` that marks an example without a label. Such examples count in
            the standardisation and in terms that need no labels, as `simclr`.
        validation_fraction: of the examples of each class, set aside; training stops when the
            accuracy on them has not risen `patience` times, and the best parameters are kept. 0:
            none.
        patience: see `validation_fraction`; the accuracy is taken 20 times in all.
        n_seeds: networks, trained at once; their probabilities are averaged.
        random_state: seed of the initial values and the batches.
        verbose: whether to show the progress.

    Attributes:
        classes_: `[K]`, the classes.
        params_: by name, the layers of all networks, `[n_seeds, ...]`.
        mean_: `[C]`, of the features.
        scale_: `[C]`, their standard deviations.
        n_iter_: steps done.
        n_features_in_: `C`.
        validation_scores_: accuracy on the validation part, if there is one, `[times, n_seeds]`.

    References:
        Croitoru et al., "Discriminability-enforcing loss to improve representation learning", 2022
        (arXiv 2202.07073), for the terms; docs/losses.md has the others' sources.

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.model_selection import train_test_split
        >>> x, y = load_digits(return_X_y=True)
        >>> x, x_test, y, y_test = train_test_split(x, y, random_state=0)
        >>> found = HeadClassifier("gini_kl", steps=200, random_state=0).fit(x, y)
        >>> found.score(x_test, y_test) > 0.95, found.transform(x_test).shape
        (True, (450, 256))
    """

    def __init__(
        self,
        objective: str | Mapping[str, Any] = "supcon",
        *,
        hidden: tuple[int, ...] = (256,),
        weight: float = 1.0,
        loss_settings: Mapping[str, Any] | None = None,
        steps: int = 500,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 1.0,
        label_smoothing: float = 0.0,
        per_class: int = 0,
        running_decay: float = 0.0,
        corrupted: float = 0.3,
        superclasses: Mapping[Any, Any] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        unlabelled: Any = None,
        validation_fraction: float = 0.0,
        patience: int = 5,
        n_seeds: int = 1,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.objective = objective
        self.hidden = hidden
        self.weight = weight
        self.loss_settings = loss_settings
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.per_class = per_class
        self.running_decay = running_decay
        self.corrupted = corrupted
        self.superclasses = superclasses
        self.class_weight = class_weight
        self.unlabelled = unlabelled
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.n_seeds = n_seeds
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "HeadClassifier":
        """Trains the networks.

        Args:
            X: `[N, C]` finite features.
            y: `[N]` classes, numbers or strings.
            sample_weight: `[N]` weights of the examples; 1 by default.

        Raises:
            ValueError: as scikit-learn's classifiers raise it; a parameter is out of bounds, or
                names nothing.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        labels = self._labels(y)
        settings = self._settings(bool((labels < len(self.classes_)).all()))
        weights = self._weights(sample_weight, X, y, labels)
        if weights is not None:
            kept = weights > 0
            X, labels, weights = X[kept], labels[kept], weights[kept]
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        rows, held = self._divided(labels, int(seed))
        own = None if weights is None else weights[rows]
        self.mean_, self.scale_ = _moments(X[rows], own)
        x = self._standardised(X)
        shares = np.bincount(labels[rows], minlength=len(self.classes_) + 1)[:-1]
        run = Run(
            keys_of(int(seed), self.n_seeds),
            jnp.asarray(rows.astype(np.int32)),
            jnp.asarray(labels[rows]),
            None if own is None else jnp.asarray(own.astype(np.float32)),
            jnp.float32(self.learning_rate),
            jnp.float32(self.weight_decay),
            jnp.float32(self.weight),
            jnp.float32(self.label_smoothing),
        )
        arrays = jnp.asarray(x), jnp.asarray(shares / shares.sum(), jnp.float32)
        program = programs(settings, len(self.classes_))
        params = self._trained(program, run, *arrays, (x[held], labels[held]))
        self.params_ = {k: np.asarray(v) for k, v in params.items() if k != "terms"}
        if not all(np.isfinite(v).all() for v in self.params_.values()):
            raise InputError(
                f"training with learning_rate={self.learning_rate} and weight="
                f"{self.weight} ended in numbers that are not finite; lower them, such as "
                f"learning_rate={self.learning_rate / 10:g}"
            )
        self._n_features_out = self.n_seeds * (self.hidden[-1] if self.hidden else x.shape[1])
        return self

    def _labels(self, y: np.ndarray) -> np.ndarray:
        """Classes as numbers, and their number for an example without one; sets `classes_`."""
        labelled = np.ones(len(y), bool) if self.unlabelled is None else y != self.unlabelled
        check_classification_targets(y[labelled])
        self.classes_ = np.unique(y[labelled])
        count = len(self.classes_)
        if count < 2:
            raise ValueError(f"The number of classes has to be greater than one; got {count} class")
        labels = np.full(len(y), count, np.int32)
        labels[labelled] = np.searchsorted(self.classes_, y[labelled])
        return labels

    def _trained(self, program: Programs, run: Run, x: Any, shares: Any, held: Any) -> Any:
        """The networks' parameters: after all steps, or the best on the examples held out."""
        self.n_iter_ = self.steps
        if not len(held[0]) and not self.verbose:
            return program.train(run, x, shares)
        size = -(-self.steps // EVALUATIONS)
        state, best, scores = program.start(run, x, shares), None, []
        held = tuple(jnp.asarray(a) for a in held)
        with tqdm(total=self.steps, unit="step", disable=not self.verbose) as bar:
            for first in range(0, self.steps, size):
                steps = jnp.arange(first, min(first + size, self.steps))
                state = program.advance(state, run, x, shares, steps)
                self.n_iter_ = int(steps[-1]) + 1
                bar.update(len(steps))
                if not len(held[0]):
                    continue
                scores.append(np.asarray(program.accuracy(state[0], *held)))
                if best is None:
                    best = state[0]
                risen = scores[-1] > np.max(scores[:-1], axis=0, initial=-1.0)
                best = program.chosen(jnp.asarray(risen), state[0], best)
                latest = [int(np.argmax(own)) for own in np.transpose(scores)]
                if len(scores) - 1 - max(latest) >= self.patience:
                    break
        if scores:
            self.validation_scores_ = np.array(scores)
        return best if scores else state[0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """`[N, K]`: the mean of the networks' probabilities."""
        logits = [own.logits for own in self._outputs(X)]
        shifted = [np.exp(own - own.max(axis=1, keepdims=True)) for own in logits]
        return np.mean([own / own.sum(axis=1, keepdims=True) for own in shifted], axis=0)

    def predict(self, X: Any) -> np.ndarray:
        """`[N]`: the most probable classes."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]  # type: ignore[no-any-return]

    def transform(self, X: Any) -> np.ndarray:
        """`[N, n_seeds * H]`: the last hidden features of all networks."""
        return np.concatenate([own.hidden for own in self._outputs(X)], axis=1)

    def _outputs(self, X: Any) -> list["_Outputs"]:
        """Of each network, in float64, so that they do not depend on how examples are batched."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        x = self._standardised(X).astype(np.float64)
        count = len(self.params_["w1"])
        layers = [
            {k: v[i].astype(np.float64) for k, v in self.params_.items()} for i in range(count)
        ]
        return [_outputs_of(own, x) for own in layers]

    def _standardised(self, X: np.ndarray) -> np.ndarray:
        return ((X - self.mean_) / self.scale_).astype(np.float32)

    def _check_parameters(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            whole = bounds in ("[1, inf)",) or name == "per_class"
            kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            number = isinstance(value, kinds) and not isinstance(value, (bool, np.bool_))
            if not number or not in_bounds(value, bounds):
                what = "a whole number" if whole else "a number"
                raise InputError(f"{name}={value!r}; it must be {what} in {bounds}")
        if self.per_class > self.batch_size:
            raise InputError(
                f"per_class={self.per_class} exceeds batch_size={self.batch_size}, so that a batch "
                f"would hold no class; set batch_size={4 * self.per_class}"
            )
        check_random_state(self.random_state)
        sizes = self.hidden if isinstance(self.hidden, (tuple, list)) else [0]
        if not all(isinstance(n, (int, np.integer)) and n >= 1 for n in sizes):
            raise InputError(
                f"hidden={self.hidden!r}; it must be a tuple of sizes, such as (256,) or ()"
            )

    def _settings(self, all_labelled: bool) -> Settings:
        terms = terms_of(self.objective, self.loss_settings or {})
        settings = Settings(
            terms,
            tuple(int(n) for n in self.hidden),
            steps=self.steps,
            batch_size=self.batch_size,
            per_class=self.per_class,
            running_decay=self.running_decay,
            smooths=self.label_smoothing > 0,
            unlabelled=not all_labelled,
            corrupted=self.corrupted,
        )
        if "views" in settings.needs and self.per_class and not all_labelled:
            raise InputError(
                f"per_class={self.per_class} draws only examples with a label, but "
                f"{self.objective!r} learns from those without; set per_class=0"
            )
        if "superclasses" not in settings.needs:
            return settings
        given = self.superclasses or {}
        lacking = [name for name in self.classes_.tolist() if name not in given]
        if lacking:
            raise InputError(
                f"superclasses has no entry for the class {lacking[0]!r}; the objective "
                f"{self.objective!r} needs one for each class: superclasses={{{lacking[0]!r}: ...}}"
            )
        names = [given[name] for name in self.classes_.tolist()]
        order = sorted(set(names), key=str)
        return settings._replace(superclasses=tuple(order.index(name) for name in names))

    def _weights(self, given: Any, X: Any, y: Any, labels: np.ndarray) -> np.ndarray | None:
        """Weights of the examples; None where all are 1."""
        if given is None and self.class_weight is None:
            return None
        weights = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            known = labels < len(self.classes_)
            own = dict(self.class_weight) if isinstance(self.class_weight, Mapping) else None
            of_class = compute_class_weight(
                own or self.class_weight, classes=self.classes_, y=y[known]
            )
            weights = weights * np.append(of_class, 1.0)[labels]
        if not (weights > 0).any():
            raise ValueError("sample_weight is 0 for every example; no example counts")
        return weights  # type: ignore[no-any-return]

    def _divided(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows to train on, and those that are held out, of each class their share."""
        rng, held = np.random.default_rng([seed, 11]), []
        for k in range(len(self.classes_)):
            own = np.flatnonzero(labels == k)
            held.append(rng.permutation(own)[: int(self.validation_fraction * len(own))])
        out = np.sort(np.concatenate(held))
        if self.validation_fraction and not len(out):
            raise InputError(
                f"validation_fraction={self.validation_fraction} holds out no example: the largest "
                f"class has {np.bincount(labels).max()}; raise it, or set it to 0"
            )
        return np.setdiff1d(np.arange(len(labels)), out), out


class _Outputs(NamedTuple):
    hidden: np.ndarray
    logits: np.ndarray


def _outputs_of(params: dict[str, np.ndarray], x: np.ndarray) -> _Outputs:
    """`hidden_of` and `logits_of` in NumPy."""
    last = sum(name.startswith("w") for name in params)
    for i in range(1, last):
        x = np.maximum(x @ params[f"w{i}"] + params[f"b{i}"], 0)
    if f"b{last}" in params:
        return _Outputs(x, x @ params[f"w{last}"] + params[f"b{last}"])
    unit = [
        v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30)
        for v in (x, params[f"w{last}"].T)
    ]
    return _Outputs(x, SCALE * unit[0] @ unit[1].T)


def _moments(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the features."""
    if weights is None:
        return x.mean(axis=0), x.std(axis=0) + 1e-6
    mean = np.average(x, axis=0, weights=weights)
    return mean, np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights)) + 1e-6
