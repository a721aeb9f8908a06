"""The classifier on features: scikit-learn's contract, its training, every objective."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

from gini_jax import HeadClassifier
from gini_jax.errors import InputError
from gini_jax.heads.programs import programs, terms_of
from gini_jax.heads.training import Head, Run, Settings
from gini_jax.losses.terms import PRESETS

DIGITS = train_test_split(*load_digits(return_X_y=True), random_state=0)
SMALL = {"hidden": (32,), "steps": 60, "learning_rate": 0.01, "random_state": 0}
WEIGHTS = {
    "check_sample_weight_equivalence_on_dense_data": "in float32 the two orders of summation "
    "differ by 3e-7; and to a loss over pairs, a repeated example is one more positive"
}


@pytest.mark.slow
@parametrize_with_checks(
    [HeadClassifier(x, hidden=(32,), steps=100, random_state=0) for x in ("ce", "supcon")],
    expected_failed_checks=lambda _: WEIGHTS,
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check(estimator)


def test_one_step_of_a_whole_batch_is_that_of_adamw():
    """Against NumPy in float64; the first step of Adam divides the gradient by its size."""
    x, y = make_blobs(60, 5, random_state=1)
    rate, decay = 1e-3, 0.3
    given = {"hidden": (4,), "learning_rate": rate, "weight_decay": decay, "random_state": 5}
    found = HeadClassifier("ce", steps=1, **given).fit(x, y)
    start = Head(Settings(hidden=(4,), steps=1), 3).start
    labels, rows = jnp.asarray(y), jnp.arange(60)
    before = start(Run(jax.random.key(5), rows, labels), jnp.zeros((60, 5)))[0]
    p = {k: np.asarray(v, np.float64) for k, v in before.items()}
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    hidden = np.maximum(z @ p["w1"] + p["b1"], 0)
    logits = hidden @ p["w2"] + p["b2"]
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    back = (share - np.eye(3)[y]) / 60
    through = (back @ p["w2"].T) * (hidden > 0)
    gradient = {"w1": z.T @ through, "b1": through.sum(0), "w2": hidden.T @ back, "b2": back.sum(0)}
    for name, g in gradient.items():
        step = g / (np.abs(g) + 1e-8) + decay * p[name] * (name[0] == "w")
        np.testing.assert_allclose(found.params_[name][0], p[name] - rate * step, atol=2e-6)


def test_a_weight_of_two_is_an_example_twice():
    """For cross-entropy of whole batches; 0 leaves an example out, whatever it holds."""
    x, y = make_blobs(40, 5, cluster_std=4.0, random_state=0)
    weights = np.arange(40) % 3
    given = HeadClassifier("ce", **SMALL)
    one = clone(given).fit(x, y, sample_weight=weights)
    other = clone(given).fit(np.repeat(x, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(one.predict_proba(x), other.predict_proba(x), atol=1e-4)


def test_balanced_classes_weigh_the_same():
    x, y = make_blobs([60, 6], 4, centers=[[0.0] * 4, [1.5] * 4], cluster_std=2.0, random_state=0)
    plain, balanced = (
        HeadClassifier("ce", class_weight=w, **SMALL).fit(x, y) for w in (None, "balanced")
    )
    assert balanced.predict_proba(x)[:, 1].mean() > 1.5 * plain.predict_proba(x)[:, 1].mean()
    same = HeadClassifier("ce", class_weight={0: 66 / 120, 1: 66 / 12}, **SMALL).fit(x, y)
    np.testing.assert_allclose(same.predict_proba(x), balanced.predict_proba(x), atol=1e-5)


QUICK = ("gini_kl", "arcface", "hierarchy", "simclr")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in PRESETS]
)
def test_every_objective_trains_a_head(name):
    x, x_test, y, y_test = DIGITS
    given = SMALL | {"superclasses": {k: k % 2 for k in range(10)}}
    found = HeadClassifier(name, **given).fit(x, y)
    least = 0.6 if name == "simclr" else 0.85  # only the last layer of simclr learns from labels
    assert found.score(x_test, y_test) > least
    plain = HeadClassifier("ce", **SMALL).fit(x, y)
    differs = np.abs(found.params_["w1"] - plain.params_["w1"]).max() > 1e-4
    assert differs == (name != "ce")


def test_settings_of_terms_and_a_loss_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text(
        "def mean_square(features, labels, *, power: float = 2.0, **options):\n"
        '    """A loss.\n\n    Args:\n        power: of the features.\n    """\n'
        "    return (abs(features) ** power).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, _, y, _ = DIGITS
    sizes = []
    for power in (1.0, 4.0):
        own = HeadClassifier(
            "own_loss:mean_square", loss_settings={"mean_square.power": power}, **SMALL
        )
        sizes.append(own.fit(x, y).transform(x).mean())
    assert (
        sizes[0] != sizes[1]
        and max(sizes) < HeadClassifier("ce", **SMALL).fit(x, y).transform(x).mean()
    )
    both = HeadClassifier({"gini": 0.5, "supcon": {"weight": 0.1, "temperature": 0.2}}, **SMALL)
    assert both.fit(x, y).score(x, y) > 0.85


def test_many_seeds_at_once_are_those_of_one_each_and_their_mean():
    x, x_test, y, _ = DIGITS
    many = HeadClassifier("supcon", n_seeds=3, **SMALL).fit(x, y)
    one = HeadClassifier("supcon", **SMALL).fit(x, y)
    for name, values in one.params_.items():
        np.testing.assert_allclose(many.params_[name][0], values[0], atol=2e-4)
        assert np.abs(many.params_[name][1:] - values).max() > 1e-2 or name[0] == "b"
    hidden = many.transform(x_test).reshape(len(x_test), 3, 32)
    logits = np.einsum("nsh,shk->nsk", hidden, many.params_["w2"]) + many.params_["b2"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(many.predict_proba(x_test), shares.mean(axis=1), rtol=1e-6)
    assert list(many.get_feature_names_out()[:2]) == ["headclassifier0", "headclassifier1"]


def test_a_second_fit_of_the_same_shapes_compiles_nothing():
    x, _, y, _ = DIGITS
    HeadClassifier("center", **SMALL).fit(x, y)
    train = programs(Settings((("center", (("weight", 0.01),)),), (32,), 60, 128), 10).train
    assert train._cache_size() == 1
    other = SMALL | {"random_state": 1, "learning_rate": 0.02}
    HeadClassifier("center", weight=3.0, weight_decay=0.0, **other).fit(x + 1.0, y[::-1])
    assert train._cache_size() == 1


@pytest.mark.slow
def test_examples_without_a_label():
    """They change what needs no label, and nothing else; -1 is a class like any other."""
    x, x_test, y, y_test = DIGITS
    names = np.array(["none", *"abcdefghij"])[np.where(np.arange(len(y)) % 5, 0, 1 + y)]
    given = HeadClassifier("simclr", unlabelled="none", **SMALL | {"steps": 200})
    found = clone(given).fit(x, names)
    assert found.classes_.tolist() == list("abcdefghij")
    right = np.array(list("abcdefghij"))[y_test]
    assert found.score(x_test, right) > 0.8
    signed = HeadClassifier("ce", **SMALL).fit(x, y - 1)
    assert signed.classes_[0] == -1 and (signed.predict(x_test) == y_test - 1).mean() > 0.85
    every = HeadClassifier("ce", unlabelled=-1, **SMALL).fit(x, np.where(y == 3, -1, y))
    assert 3 not in every.predict(x_test)


@pytest.mark.parametrize("name", ["proxy_anchor", "relation", "cosface", "center"])
def test_what_needs_labels_does_not_see_examples_without_one(name):
    """Only the batches differ: with all examples in each batch, the networks are equal."""
    x, _, y, _ = (part[:60] for part in DIGITS)
    small = SMALL | {"steps": 3, "batch_size": 200}
    marked = np.where(np.arange(60) % 3, y, -1)
    known = HeadClassifier(name, **small).fit(x[marked >= 0], y[marked >= 0])
    found = HeadClassifier(name, unlabelled=-1, **small)
    found.fit(np.concatenate([x[marked >= 0]] * 2), np.r_[marked[marked >= 0], [-1] * 40])
    for key, value in known.params_.items():
        np.testing.assert_allclose(found.params_[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["ce", "supcon"])
def test_a_head_is_that_of_the_benchmark_to_the_last_bit(name):
    """Called as benchmarks/frozen_features.py calls it, on features that it standardises."""
    x, _, y, _ = DIGITS
    x = x.astype(np.float32)
    standardised = ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)).astype(np.float32)
    settings = Settings(terms_of(name, {}), hidden=(32,), steps=60)
    train = Head(settings, 10).train
    rows, labels = np.arange(len(y), dtype=np.int32)[None], y.astype(np.int32)[None]
    rate, decay, one = (np.array([value], np.float32) for value in (0.01, 0.1, 1.0))
    run = Run(jax.random.key(0)[None], rows, labels, None, rate, decay, one, one)
    expected = jax.jit(jax.vmap(lambda run: train(run, jnp.asarray(standardised))))(run)
    found = HeadClassifier(name, **SMALL, weight_decay=0.1).fit(x, y)
    close = np.testing.assert_array_equal
    jax.tree.map(close, found.params_, {k: np.asarray(v) for k, v in expected.items()})


def test_training_stops_early_and_keeps_the_best():
    x, x_test, y, y_test = DIGITS
    given = SMALL | {"steps": 2000}
    found = HeadClassifier("ce", validation_fraction=0.2, patience=2, n_seeds=2, **given).fit(x, y)
    assert found.n_iter_ < 2000 and found.n_iter_ == 100 * len(found.validation_scores_)
    best = found.validation_scores_.argmax(axis=0)
    assert len(found.validation_scores_) - 1 - best.max() == 2
    assert found.score(x_test, y_test) > 0.9


def test_it_is_shown_how_far_training_is(capsys):
    x, _, y, _ = DIGITS
    shown = HeadClassifier("ce", verbose=True, **SMALL).fit(x, y)
    silent = HeadClassifier("ce", **SMALL).fit(x, y)
    np.testing.assert_allclose(shown.params_["w1"], silent.params_["w1"], atol=1e-5)
    assert "60/60" in capsys.readouterr().err


def test_pipelines_searches_and_pickles():
    x, x_test, y, _ = DIGITS
    own = HeadClassifier("ce", **SMALL)
    assert cross_val_score(make_pipeline(Normalizer(), own), x, y, cv=2).min() > 0.85
    found = own.fit(x, y)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(x_test), found.predict_proba(x_test))


@pytest.mark.slow
def test_a_search_in_two_processes():
    x, _, y, _ = DIGITS
    grid = {"objective": ["ce", "gini"], "weight": [0.1, 1.0]}
    search = GridSearchCV(HeadClassifier(**SMALL), grid, cv=2, n_jobs=2).fit(x[:400], y[:400])
    assert search.best_score_ > 0.8 and len(search.cv_results_["params"]) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": "supcom"}, "did you mean 'supcon'"),
        ({"objective": "nowhere:loss"}, "nowhere"),
        ({"loss_settings": {"supcon.temprature": 0.1}}, "did you mean 'temperature'"),
        ({"loss_settings": {"gini.weight": 0.1}}, "unknown loss_settings 'gini.weight'"),
        ({"loss_settings": {"supcon.temperature": 0.0}}, "temperature=0.0"),
        ({"hidden": 256}, r"hidden=256; it must be a tuple of sizes, such as \(256,\)"),
        ({"steps": 1.5}, r"steps=1.5; it must be a whole number in \[1, inf\)"),
        ({"learning_rate": "0.1"}, "learning_rate='0.1'"),
        ({"validation_fraction": 0.001}, "holds out no example"),
        ({"objective": "hierarchy", "superclasses": {0: "a"}}, "no entry for the class 1"),
        ({"class_weight": "balance"}, "class_weight"),
        ({"per_class": 200}, "per_class=200 exceeds batch_size=128.*set batch_size=800"),
        ({"learning_rate": 1e3}, "not finite; lower them, such as learning_rate=100"),
        ({"objective": ["ce"]}, r"objective=\['ce'\] must be a name, such as 'supcon'"),
        ({"objective": {"gini": "a"}}, "the weight 'a' for 'gini'; it must be a number"),
        ({"loss_settings": [1]}, r"loss_settings=\[1\] must map settings to values"),
        ({"random_state": -1}, "Seed must be between 0 and"),
    ],
)
def test_bad_parameters_are_refused_before_training(given, said):
    x, _, y, _ = DIGITS
    with pytest.raises((InputError, ValueError), match=said):
        HeadClassifier(**SMALL | given).fit(x, y)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "contains NaN"),
        (np.eye(4), [0, 0, 0, 0], "got 1 class"),
        (np.array([["a", "b"]] * 4), [0, 1, 0, 1], "could not convert string to float"),
        (np.eye(4), [0.1, 1.7, 2.2, 0.1], "Unknown label type"),
        (np.eye(4), [0, 1], "inconsistent numbers of samples"),
    ],
)
def test_a_bad_matrix_gets_the_usual_error(x, y, said):
    with pytest.raises(ValueError, match=said):
        HeadClassifier().fit(x, y)


def test_a_matrix_of_another_width_gets_the_usual_error():
    x, _, y, _ = DIGITS
    found = HeadClassifier("ce", **SMALL).fit(x, y)
    with pytest.raises(ValueError, match="63 features, but HeadClassifier is expecting 64"):
        found.predict(x[:, 1:])
