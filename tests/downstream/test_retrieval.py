"""Retrieval against loops, pytorch-metric-learning, closed forms and random orders."""

import numpy as np
import pytest

from gini_jax.downstream.retrieval import retrieval


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_retrieval_equals_a_loop_over_sorted_neighbours(rng):
    features, labels = rng.normal(size=(60, 5)), rng.integers(0, 7, 60)
    labels[0] = 7  # alone in its class: no query
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    recall, precision, average = [], [], []
    for i in range(1, 60):
        order = [j for j in np.argsort(-(unit @ unit[i])) if j != i]
        hits = [labels[j] == labels[i] for j in order]
        number = sum(hits)
        if number:
            recall.append(hits[0])
            precision.append(sum(hits[:number]) / number)
            at = [sum(hits[: r + 1]) / (r + 1) for r in range(number) if hits[r]]
            average.append(sum(at) / number)
    expected = {"recall_at_1": recall, "r_precision": precision, "map_at_r": average}
    found = retrieval(features, labels)
    assert found == pytest.approx({key: np.mean(x) for key, x in expected.items()})


def test_retrieval_equals_pytorch_metric_learning(rng):
    name = "pytorch_metric_learning.utils.accuracy_calculator"
    calculator = pytest.importorskip(name, reason="compares with pytorch-metric-learning")
    torch = pytest.importorskip("torch", reason="compares with pytorch-metric-learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    features, labels = rng.normal(size=(300, 8)).astype(np.float32), rng.integers(0, 20, 300)
    features += 2 * np.eye(20, 8, dtype=np.float32)[labels]
    theirs = calculator.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
    ).get_accuracy(torch.from_numpy(features), torch.from_numpy(labels))
    found = retrieval(features, labels)
    assert found["recall_at_1"] == pytest.approx(theirs["precision_at_1"])
    assert found["r_precision"] == pytest.approx(theirs["r_precision"])
    assert found["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"])


def test_equally_similar_images_count_as_if_in_random_order(rng):
    """The mean over many random orders of the loop above's numbers; features of three kinds."""
    features, labels = np.eye(3)[rng.integers(0, 3, 12)], rng.integers(0, 3, 12)
    found, sums = retrieval(features, labels), np.zeros(3)
    for _ in range(4000):
        for i in range(12):
            others = [j for j in rng.permutation(12) if j != i]
            order = sorted(others, key=lambda j: -(features[j] @ features[i]))
            hits = np.array([labels[j] == labels[i] for j in order])
            number = hits.sum()
            at = hits.cumsum()[:number] / np.arange(1, number + 1) * hits[:number]
            sums += hits[0], hits[:number].mean(), at.sum() / number
    expected = dict(zip(found, sums / 48_000, strict=True))
    assert found == pytest.approx(expected, abs=0.01)


def test_equal_features_retrieve_by_chance_and_nan_ones_not_at_all():
    labels = np.repeat(np.arange(10), 20)
    found = retrieval(np.ones((200, 4)), labels)
    chance = 19 / 199
    assert found["recall_at_1"] == pytest.approx(chance)
    assert found["r_precision"] == pytest.approx(chance)
    # At place r of R, a hit finds (R - 1) / 198 of the others before it to be hits too.
    at = [chance * (1 + (r - 1) * 18 / 198) / r for r in range(1, 20)]
    assert found["map_at_r"] == pytest.approx(np.mean(at))
    features = np.ones((200, 4))
    features[3] = np.nan
    assert all(np.isnan(x) for x in retrieval(features, labels).values())


def test_one_hot_features_retrieve_perfectly_and_random_ones_by_chance(rng):
    labels = np.repeat(np.arange(10), 200)
    assert retrieval(np.eye(10)[labels], labels)["map_at_r"] == pytest.approx(1, abs=1e-12)
    by_chance = retrieval(rng.normal(size=(2000, 64)), labels)
    assert by_chance["recall_at_1"] == pytest.approx(199 / 1999, abs=0.03)
    assert by_chance["r_precision"] == pytest.approx(199 / 1999, abs=0.01)
