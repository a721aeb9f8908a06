"""Benches against closed forms, other libraries, and networks whose answer is known."""

import json
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from gini_jax.analysis import figures
from gini_jax.analysis.bench_pictures import varies
from gini_jax.cli import run as launch
from gini_jax.config.change import default_config
from gini_jax.data import load_dataset
from gini_jax.data.source import Dataset, Split
from gini_jax.downstream import benches_of, corruptions, explain, fewshot, outliers, prune, robust
from gini_jax.downstream.subject import Subject
from gini_jax.errors import InputError
from gini_jax.evals import SplitOutputs
from gini_jax.modes import bench, sweep, train
from gini_jax.trained import Trained
from tests.helpers import tiny

RNG = np.random.default_rng(0)
ATTACKS = robust.ATTACKS


@pytest.fixture(autouse=True)
def same_draws():
    """Draws that do not depend on the order of the tests."""
    global RNG
    RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------------- few examples


def test_equal_features_are_classified_by_chance_from_few_examples():
    labels = np.repeat(np.arange(5), 20)
    np.testing.assert_allclose(fewshot.episodes(np.ones((100, 4)), labels, 1, 5), 1 / 5)


def test_few_examples_are_enough_for_one_hot_features_and_chance_for_random_ones():
    labels = np.repeat(np.arange(8), 20)
    assert fewshot.episodes(np.eye(8)[labels], labels, shots=1, count=20).min() == 1
    scores = fewshot.episodes(RNG.normal(size=(160, 16)), labels, shots=5)
    assert scores.mean() == pytest.approx(1 / 5, abs=0.03)
    assert len(scores) == 600


def test_few_examples_of_two_clusters_have_the_error_of_the_nearest_mean():
    """Two unit vectors with noise of known size: the error is that of one normal deviate."""
    labels, deviation = np.repeat(np.arange(5), 400), 0.2
    features = np.eye(100)[labels] + deviation / 10 * RNG.normal(size=(2000, 100))
    assert fewshot.episodes(features, labels, shots=5, count=50).mean() > 0.999


# ---------------------------------------------------------------------------- attacks


def linear_problem(classes: int):
    """A linear classifier of 4x4 images with mid-range pixels, whose bounds never bind."""
    weights = RNG.normal(size=(48, classes))
    images = 0.5 + 0.05 * RNG.normal(size=(200, 4, 4, 3)).astype(np.float32)
    bias = -images.reshape(200, -1).mean(axis=0) @ weights
    labels = (images.reshape(200, -1) @ weights + bias).argmax(axis=1)

    def logits(variables, x):
        return x.reshape(len(x), -1) @ jnp.asarray(weights, jnp.float32) + bias

    return weights, bias, images, labels, logits


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_pgd_reaches_the_exact_radius_of_a_linear_classifier(norm, dual):
    weights, bias, images, labels, logits = linear_problem(2)
    difference = weights[:, 0] - weights[:, 1]
    margins = np.abs(images.reshape(200, -1) @ difference + bias[0] - bias[1])
    radius = margins / np.linalg.norm(difference, ord=dual)
    bounds = np.quantile(radius, [0, 0.25, 0.5, 0.75]) * 1.0001
    found = robust.under_attack(logits, None, images, labels, norm, robust.STEPS, [0, *bounds])
    exact, near = ([(radius > x * bound).mean() for bound in (0, *bounds)] for x in (1, 0.95))
    assert (found >= np.array(exact) - 0.006).all()
    assert (found <= np.array(near) + 0.006).all()


def test_fgsm_is_exact_for_two_classes_and_no_attack_beats_the_bound_for_more():
    weights, bias, images, labels, logits = linear_problem(2)
    difference = weights[:, 0] - weights[:, 1]
    margins = np.abs(images.reshape(200, -1) @ difference + bias[0] - bias[1])
    radius = margins / np.abs(difference).sum()
    bound = float(np.median(radius)) * 1.0001
    (found,) = robust.under_attack(logits, None, images, labels, "linf", 1, [bound])
    assert found == pytest.approx((radius > bound).mean(), abs=0.006)
    weights, bias, images, labels, logits = linear_problem(5)
    scores = images.reshape(200, -1) @ weights + bias
    true = scores[np.arange(200), labels]
    gaps = true[:, None] - scores + 1e9 * np.eye(5)[labels]
    lengths = np.linalg.norm(weights.T[labels][:, None] - weights.T[None], axis=2) + 1e-12
    radius = (gaps / lengths).min(axis=1)
    bound = float(np.median(radius))
    (found,) = robust.under_attack(logits, None, images, labels, "l2", robust.STEPS, [bound])
    assert found >= (radius > bound).mean() - 1e-9
    (found,) = robust.under_attack(logits, None, images, labels, "l2", robust.STEPS, [2 * bound])
    assert found <= (radius > bound).mean()


def test_attacks_stay_within_their_bounds_and_the_pixels_range():
    _, _, images, labels, logits = linear_problem(3)
    images = np.clip(images * 2 - 0.5, 0, 1)
    for norm, bound in (("linf", 0.1), ("l2", 0.7)):
        key = robust.jax.random.key(0)
        x, y = jnp.asarray(images), jnp.asarray(labels)
        changed = np.asarray(robust.attacked(logits, None, x, y, bound, key, norm=norm, steps=5))
        change = (changed - images).reshape(200, -1)
        size = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
        assert size.max() <= bound * 1.00001
        assert changed.min() >= -1e-7
        assert changed.max() <= 1 + 1e-6


# ---------------------------------------------------------------------------- corruptions


def test_corruptions_are_what_they_say():
    images = RNG.random((8, 16, 16, 3)).astype(np.float32)
    grey = np.full((64, 16, 16, 3), 0.5, np.float32)
    noise = np.asarray(corruptions.noise(grey, 0.08)) - 0.5
    assert noise.std() == pytest.approx(0.08, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    less = mean + 0.4 * (images - mean)
    np.testing.assert_allclose(corruptions.contrast(images, 0.4), less, atol=1e-6)
    blurred = np.asarray(corruptions.blur(images, 1.0))
    expected = scipy.ndimage.gaussian_filter(
        images.astype(np.float64), (0, 1, 1, 0), radius=(0, 4, 4, 0), mode="constant"
    )
    np.testing.assert_allclose(blurred[:, 5:11, 5:11], expected[:, 5:11, 5:11], atol=1e-5)
    halves = np.asarray(corruptions.pixelate(images, 0.5))
    np.testing.assert_array_equal(halves[:, ::2], halves[:, 1::2])
    smooth = np.broadcast_to(np.linspace(0, 1, 16)[:, None, None], (2, 16, 16, 3))
    errors = [
        np.abs(np.asarray(corruptions.jpeg(smooth, quality)) - smooth).mean()
        for quality in (95, 50, 5)
    ]
    assert errors[0] < 0.01 < errors[2] < 0.2
    assert errors[0] < errors[1] < errors[2]


def test_a_network_of_the_mean_colour_does_not_mind_contrast(subject_of):
    """The class is whether an image is bright, which contrast does not change."""
    levels = np.where(np.arange(40) % 2, 0.8, 0.2)[:, None, None, None]
    images = np.clip(levels + 0.1 * RNG.normal(size=(40, 8, 8, 3)), 0, 1)
    subject = subject_of(images, np.arange(40) % 2)
    found = corruptions.measure(subject)
    assert found["corruptions/none"] == 1
    assert found["corruptions/contrast"].tolist() == [1] * 5
    assert found["corruption_accuracy"] <= 1


class Brightness(nn.Module):
    """Tells bright images from dark ones."""

    @nn.compact
    def __call__(self, x, *, train):
        mean = x.mean(axis=(1, 2, 3))
        return jnp.stack([0.5 - mean, mean - 0.5], axis=1), {}


@pytest.fixture
def subject_of():
    def make(images, labels):
        stored = np.round(np.asarray(images) * 255).astype(np.uint8)
        split = Split(stored, np.asarray(labels, np.int32))
        dataset = Dataset({"train": split, "test": split}, ("dark", "bright"), 8)
        trained = Trained(Brightness(), {}, default_config(), ("dark", "bright"), 8, 0)
        return Subject(trained, dataset)

    return make


# ---------------------------------------------------------------------------- outliers, pruning


def test_auroc_of_normal_deviates_is_that_of_their_difference():
    known, unknown = RNG.normal(1, 1, 20_000), RNG.normal(0, 1, 20_000)
    from scipy.stats import norm

    expected = norm.cdf(1 / np.sqrt(2))
    assert outliers.auroc(known, unknown) == pytest.approx(expected, abs=0.01)


def test_shuffled_pixels_keep_each_images_colours():
    images = RNG.integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
    shuffled = outliers.shuffled_pixels(images)
    assert (shuffled != images).any()
    for a, b in zip(images, shuffled, strict=True):
        assert sorted(map(tuple, a.reshape(-1, 3))) == sorted(map(tuple, b.reshape(-1, 3)))


def test_pruning_finds_the_features_that_carry_the_classes():
    """4 pure features among 64: the purest four are enough, random ones are not."""
    labels = np.tile(np.arange(4), 100)
    features = np.concatenate([np.eye(4)[labels], np.abs(RNG.normal(size=(400, 60)))], axis=1)
    head = np.zeros((64, 4))
    head[:4] = np.eye(4)
    outputs = SplitOutputs(np.eye(4)[labels], features.astype(np.float32), {}, labels)
    subject = SimpleNamespace(
        train=outputs, test=outputs, num_classes=4, trained=SimpleNamespace(head=head)
    )
    found = prune.measure(subject)
    assert found["prune_purest"] == found["prune_important"] == 4 / 64
    assert found["prune_random"] > 4 / 64
    assert found["prune/purest"][list(found["prune/sizes"]).index(4)] == 1


# ---------------------------------------------------------------------------- pictures


def test_every_group_is_drawn_whatever_their_number():
    curves = {f"robust/{name}": np.ones(len(robust.BOUNDS[n])) for name, (n, _) in ATTACKS.items()}
    figure = robust.draw({f"group {i}": [curves] for i in range(9)})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [f"group {i}" for i in range(9)]


def test_a_learning_curve_needs_runs_that_differ_in_the_setting():
    """Data sets of different sizes are no learning curve."""
    runs = [
        SimpleNamespace(
            config={"dataset": {"train_size": size}}, about={"examples": {"train": train}}
        )
        for size, train in ((0, 96), (0, 1197), (50, 50))
    ]
    assert not varies({"a": runs[:2]}, "dataset.train_size")
    assert varies({"a": runs[1:]}, "dataset.train_size")
    assert not varies({"a": runs}, "dataset.label_noise")  # runs from before there was the setting


# ---------------------------------------------------------------------------- the mode


def five_classes(objective):
    """One epoch on five of the classes; the others are held out."""
    config = tiny.get_config(objective)
    config.num_epochs, config.loss.start_epoch = 1, 1
    config.dataset.held_out_classes = 5
    return config


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two objectives and two shares of wrong labels, five classes held out."""
    workdir = tmp_path_factory.mktemp("sweep")
    sweep.main(
        five_classes("ce"),
        workdir,
        objectives="ce,gini_kl",
        vary=["dataset.label_noise=0.0,0.4"],
        seeds="0",
    )
    return workdir


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("once")
    train.main(five_classes("gini_kl"), workdir)
    return workdir


@pytest.mark.slow
def test_one_command_gives_every_column_that_applies(swept, capsys, monkeypatch):
    few = {name: (norm, min(steps, 2)) for name, (norm, steps) in robust.ATTACKS.items()}
    monkeypatch.setattr(robust, "ATTACKS", few)
    monkeypatch.setattr(robust, "MOST", 20)
    monkeypatch.setattr(corruptions, "MOST", 20)
    monkeypatch.setattr(figures, "embedding", None)  # t-SNE takes long
    table = bench.main(None, swept)
    said = capsys.readouterr().out
    assert "shift left out" in said
    assert "dataset.superclasses=True" in said
    names = set(benches_of("all")) - {"shift", "small", "noise"}
    keys = {key for name in names for key in benches_of(name)[name].KEYS}
    assert keys <= set(table.columns)
    assert table[sorted(keys)].notna().all(axis=None)
    assert len(table) == 4
    written = {path.name for path in swept.glob("bench*")}
    assert {"bench.csv", "bench.md", "bench_robust.png", "bench_noise.png"} <= written
    assert "bench_small.png" not in written
    assert sum(name.startswith("bench_explain_") for name in written) == 4
    for path in swept.glob("*.png"):
        assert Image.open(path).width > 300
    text = (swept / "bench.md").read_text()
    assert "Recall@1 on held-out classes" in text
    page = (swept / "report.html").read_text()
    assert "Robustness" in page
    folder = swept / "ce-dataset.label_noise=0.0-seed0"
    numbers = json.loads((folder / "bench.json").read_text())
    assert set(numbers) == names

    def fail(*arguments):
        raise AssertionError("a bench that a run has had is measured again")

    monkeypatch.setattr(bench, "subject_of", fail)
    monkeypatch.setattr(bench, "write_report", lambda *folders: None)
    bench.main(None, swept, benches=",".join(names))


def test_a_bench_that_fits_no_run_or_has_no_name_is_refused(trained_once):
    with pytest.raises(InputError, match="fits none of the runs: shift: it needs superclasses"):
        bench.main(None, trained_once, benches="shift")
    with pytest.raises(InputError, match="unknown bench 'retreival'; did you mean 'retrieval'"):
        bench.main(None, trained_once, benches="retreival")


def test_votes_add_up_to_the_logit_and_predict_draws_them(trained_once, tmp_path):
    import gini_jax

    folder = trained_once
    trained = gini_jax.load(folder)
    images = np.asarray(load_dataset(trained.config.dataset).splits["test"].images[:5])
    found = explain.explained(trained, images)
    pooled = trained.features(images)["pooled"]
    logits, head = trained._logits(images), trained.head
    bias = np.asarray(trained.variables["params"]["head"]["dense"]["bias"])
    np.testing.assert_array_equal(found.predicted, logits.argmax(axis=1))
    for i, k in enumerate(found.predicted):
        votes = pooled[i] * head[:, k]
        assert votes.sum() + bias[k] == pytest.approx(logits[i, k], abs=1e-4)
        np.testing.assert_allclose(found.votes[i], np.sort(votes)[::-1][:4], rtol=1e-6)
    assert found.maps.shape == (5, 4, 8, 8)
    assert found.maps.max() > 0.5  # the layer whose mean is pooled was found
    Image.fromarray(images[0]).save(tmp_path / "digit.png")
    launch(
        [
            "launch.py",
            "--mode=predict",
            f"--workdir={folder}",
            f"--images={tmp_path}/digit.png",
            "--explain",
        ]
    )
    assert Image.open(folder / "explanations.png").width > 300
