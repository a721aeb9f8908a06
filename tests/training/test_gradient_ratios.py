"""The terms' gradient ratios at their layers, weights that hold them, and their ramp."""

import sys
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax.config.change import changed, set_model
from gini_jax.data import load_dataset
from gini_jax.data.sampling import epoch_order
from gini_jax.data.source import Split
from gini_jax.errors import InputError, RunError
from gini_jax.losses import cosface_loss, gini_loss, kl_loss
from gini_jax.losses.balance import GradientNorms
from gini_jax.models import create_model
from gini_jax.models.layers import Classifier, perturbed
from gini_jax.modes.train import main as train_main
from gini_jax.training.experiment import check_before_data
from gini_jax.training.progress import examples_per_class, start_text
from gini_jax.training.state import layers_before_logits, why_not_measured
from gini_jax.training.step import augmented_batch
from tests.helpers import dense, tiny
from tests.helpers.runs import set_up


def ratio_config(objective="gini_kl", **changes):
    config = tiny.get_config(objective)
    config.update_from_flattened_dict({"loss.start_epoch": 1, **changes})
    return config


class Norms(NamedTuple):
    """Gradient norms at the layers, in the first step of a run: of `ce`, and of terms by name."""

    ce: float
    terms: dict[str, float]


def direct_norms(config, run):
    """By `jax.grad` of the losses themselves, outside the training step."""
    state = jax.device_get(run.state)
    train = load_dataset(config.dataset).splits["train"]
    first = epoch_order(config, 0, train.labels)[0]
    images = Split(train.images[first], train.labels[first])
    batch = jax.jit(lambda images: augmented_batch(state, images, run.experiment))(images)
    model = run.experiment.model.clone(axis_name=None)

    def outputs(zeros):
        variables = {**state.variables, **({"perturbations": zeros} if zeros else {})}
        return model.apply(variables, batch.images, train=True, mutable=["batch_stats"])[0]

    _, features = jax.jit(outputs)({})
    layers = {layer: features[layer] for layer in config.loss.layers}

    def ce(zeros):
        return optax.softmax_cross_entropy(outputs(zeros)[0], batch.labels).mean()

    def term(loss, layers):
        return sum(loss(layer, batch.labels) for layer in layers.values()) / len(layers)

    def norm(tree):
        return np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(tree)))

    of_terms = {
        name: norm(jax.jit(jax.grad(lambda x, loss=loss: term(loss, x)))(layers))
        for name, loss in (("gini", gini_loss), ("kl", kl_loss))
    }
    return Norms(norm(jax.jit(jax.grad(ce))(jax.tree.map(jnp.zeros_like, layers))), of_terms)


@pytest.mark.parametrize(
    ("devices", "start_epoch"), [pytest.param(1, 1, marks=pytest.mark.slow), (8, 3)]
)
def test_ratios_equal_a_direct_computation_by_grad(devices, start_epoch):
    """And do not depend on whether the terms are on yet, nor on terms at later layers."""
    terms = {"loss.terms.gini": 20.0, "loss.terms.kl": 5.0, "loss.start_epoch": start_epoch}
    config = ratio_config(**{"loss.layers": ("stage1", "stage2", "pooled"), **terms})
    run = set_up(config, devices)
    norms = direct_norms(config, run)
    _, metrics = run.step(run.state, run.data, run.order)
    for name, norm in norms.terms.items():
        expected = config.loss.terms[name] * norm / norms.ce
        np.testing.assert_allclose(metrics[f"gradient_ratio_{name}"][0], expected, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_ratio_of_a_term_of_logits_is_that_of_its_gradient_at_the_layers(devices):
    """By `jax.grad` through the logits, in a network without batch norm."""
    config = dense.get_config("cosface")
    set_model(config, "tests.training.test_gradient_ratios:CosineNet")
    config.update_from_flattened_dict({"loss.start_epoch": 1, "batch_size": 64})
    run = set_up(config, devices)
    state = jax.device_get(run.state)
    train = load_dataset(config.dataset).splits["train"]
    rows = epoch_order(config, 0, train.labels)[0]
    drawn = Split(train.images[rows], train.labels[rows])
    batch = jax.jit(lambda images: augmented_batch(state, images, run.experiment))(drawn)
    model, labels = run.experiment.model, drawn.labels

    def logits(hidden):
        return model.apply(state.variables, hidden, method="head_of")

    hidden = model.apply(state.variables, batch.images)[1]["hidden"]

    def ce(hidden):
        found = logits(hidden)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    def added(hidden):
        cosines = logits(hidden) / 16
        with_margin = cosface_loss(cosines, labels, scale=16.0, margin=0.35)
        return with_margin - cosface_loss(cosines, labels, scale=16.0, margin=0.0)

    norms = [np.linalg.norm(jax.grad(f)(hidden)) for f in (added, ce)]
    _, metrics = run.step(run.state, run.data, run.order)
    np.testing.assert_allclose(metrics["gradient_ratio_cosface"][0], norms[0] / norms[1], rtol=1e-4)


class CosineNet(nn.Module):
    """One hidden layer and a cosine head."""

    num_classes: int
    head: Literal["auto", "cosine"] = "auto"
    scale: float = 16.0
    axis_name: str | None = None

    def setup(self):
        self.hidden = nn.Dense(12)
        self.last = Classifier(self.num_classes, head="cosine", scale=self.scale)

    def head_of(self, hidden):
        """The logits of hidden features."""
        return self.last(hidden, train=False)

    def __call__(self, images, train=False, example_index=None):
        hidden = nn.silu(self.hidden(images.reshape(images.shape[0], -1)))
        hidden = perturbed(self, "hidden", hidden)
        return self.head_of(hidden), {"hidden": hidden, "pooled": hidden}


def test_a_run_in_which_no_weight_holds_a_ratio_ends(tmp_path):
    """Features that do not depend on the images: the term's gradient vanishes."""
    config = dense.get_config("ce")
    changes = {"loss.terms.tests_constant:constant": 0.1, "loss.hold_gradient_ratios": True}
    path = tmp_path / "tests_constant.py"
    path.write_text(
        "import jax\n"
        "def constant(features, labels, *, where=None, axis_name=None):\n"
        "    value = 1e-20 * features.mean()\n"
        "    return jax.lax.pmean(value, axis_name) if axis_name else value\n"
    )
    sys.path.append(str(tmp_path))
    try:
        changed(config, changes | {"loss.start_epoch": 1})
        with pytest.raises(RunError, match=r"at step 2 the gradient of tests_constant:constant"):
            train_main(config, tmp_path / "run", devices=jax.devices()[:1])
    finally:
        sys.path.remove(str(tmp_path))


def test_held_ratios_weigh_the_terms_by_the_ratio_of_the_gradients():
    """The first step measures, so the second has the weights of the first step's gradients."""
    ratios = {"gini": 0.3, "kl": 0.1}
    terms = {f"loss.terms.{name}": ratio for name, ratio in ratios.items()}
    config = ratio_config(**{"loss.hold_gradient_ratios": True, **terms})
    run = set_up(config, 2)
    norms = direct_norms(config, run)
    state, first = run.step(run.state, run.data, run.order)
    assert first["loss"][0] == first["ce"][0]
    _, second = run.step(state, run.data, run.order)
    added = sum(
        ratio * norms.ce / norms.terms[name] * float(second[name][0])
        for name, ratio in ratios.items()
    )
    np.testing.assert_allclose(second["loss"][0] - second["ce"][0], added, rtol=1e-3)


def test_held_ratios_without_terms_have_no_effect():
    run = set_up(ratio_config("ce", **{"loss.hold_gradient_ratios": True}))
    _, metrics = run.step(run.state, run.data, run.order)
    assert metrics["loss"][0] == metrics["ce"][0]


def test_held_ratios_stay_at_the_weights():
    """In a network that hardly changes, so that only the batches' chance is left."""
    terms = {"loss.terms.gini": 0.2, "loss.terms.kl": 0.05}
    config = ratio_config(
        **{"loss.hold_gradient_ratios": True, "schedule.learning_rate": 1e-5, **terms}
    )
    run = set_up(config)
    state, seen = run.state, []
    for _ in range(18):
        state, metrics = run.step(state, run.data, run.order)
        seen.append(
            [float(metrics["gradient_ratio_gini"][0]), float(metrics["gradient_ratio_kl"][0])]
        )
    np.testing.assert_allclose(np.mean(seen[2:], axis=0), [0.2, 0.05], rtol=0.1)


@pytest.mark.slow
def test_held_ratios_do_not_depend_on_devices_or_micro_batches():
    from tests.helpers.small_networks import LayerDrops

    ends = []
    for parts, devices in ((1, 1), (1, 8), (4, 2)):
        changes = {
            "loss.layers": ("pooled",),
            "loss.hold_gradient_ratios": True,
            "grad_accumulation": parts,
        }
        run = set_up(ratio_config(**changes), devices, model=LayerDrops(broadcast=False))
        state = run.state
        for _ in range(3):
            state, metrics = run.step(state, run.data, run.order)
        assert metrics["loss"][0] > metrics["ce"][0]
        ends.append(jax.device_get((state.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ends[0], end)


@pytest.mark.parametrize(
    ("ce", "term", "expected"),
    [(4.0, 1.0, 2.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1e6), (1.0, 1e-30, 1e6)],
)
def test_factors_of_vanishing_gradients_are_finite(ce, term, expected):
    norms = GradientNorms(jnp.float32(ce), {"kl": jnp.float32(term)})
    np.testing.assert_allclose(norms.factors()["kl"], expected)


def test_ratios_cannot_be_held_in_a_network_that_does_not_measure_them(monkeypatch):
    class Plain(nn.Module):
        def __call__(self, images, train=False, example_index=None):
            return images.mean(axis=(1, 2)), {"stage2": images}

    monkeypatch.setattr("gini_jax.training.experiment.create_model_of", lambda *a, **k: Plain())
    check_before_data(ratio_config("ce", **{"loss.hold_gradient_ratios": True}))
    with pytest.raises(
        InputError, match=r"Plain calls self.perturb for none.*hold_gradient_ratios=False"
    ):
        check_before_data(ratio_config(**{"loss.hold_gradient_ratios": True}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "others"),
    [
        ("resnet18", {"width": 8}, set()),
        ("cvt13", {"widths": (8, 8, 8), "blocks": (1, 1, 1), "heads": (1, 1, 1)}, {"stage3"}),
    ],
)
def test_the_layers_before_the_logits_are_those_with_a_gradient(name, settings, others):
    model = create_model(name, num_classes=3, **settings)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    features = jax.jit(model.apply)(variables, images)[1]

    @jax.jit
    @jax.grad
    def gradient_of_first_logit(zeros):
        return model.apply({**variables, "perturbations": zeros}, images)[0][:, 0].sum()

    gradients = gradient_of_first_logit(jax.tree.map(jnp.zeros_like, features))
    with_gradient = {layer for layer, gradient in gradients.items() if np.any(gradient)}
    assert with_gradient == set(features) - others
    assert layers_before_logits(model, 32) == with_gradient


def test_what_a_network_perturbs_inside_its_parts_is_no_layer():
    class Part(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.perturb("inner", nn.Dense(4)(x))

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, images, train=False, example_index=None):
            x = Part(name="block1")(images.reshape(len(images), -1))
            pooled = self.perturb("pooled", x)
            return nn.Dense(3)(pooled), {"block1": x, "pooled": pooled}

    assert layers_before_logits(Whole(), 8) == {"pooled"}
    assert "block1" in why_not_measured(Whole(), 8, ("block1",))


def cvt_config(*layers, **changes):
    config = ratio_config()
    set_model(config, "cvt13", widths=(8, 8, 8), blocks=(1, 1, 1), heads=(1, 1, 1))
    config.update_from_flattened_dict({"loss.layers": layers, **changes})
    return config


@pytest.mark.slow
def test_ratios_are_not_written_where_cross_entropy_has_no_gradient():
    run = set_up(cvt_config("stage3"))
    _, metrics = run.step(run.state, run.data, run.order)
    assert not any(name.startswith("gradient_ratio_") for name in metrics)
    text = start_text(run.experiment, run.state, "device", None)
    assert "logits do not depend on stage3" in text and "of pooled, stage1, stage2" in text

    run = set_up(cvt_config("pooled"))
    _, metrics = run.step(run.state, run.data, run.order)
    assert 0 < metrics["gradient_ratio_kl"][0] < np.inf
    assert "logits" not in start_text(run.experiment, run.state, "device", None)


def test_ratios_cannot_be_held_where_cross_entropy_has_no_gradient():
    check_before_data(cvt_config("stage1", "stage2", **{"loss.hold_gradient_ratios": True}))
    for layers in (("stage3",), ("stage2", "stage3")):
        with pytest.raises(InputError, match=r"stage3.*not depend on stage3.*pooled, stage1"):
            check_before_data(cvt_config(*layers, **{"loss.hold_gradient_ratios": True}))


@pytest.mark.slow
def test_ratios_of_micro_batches_are_those_of_the_whole_without_batch_norm():
    from tests.helpers.small_networks import LayerDrops

    ratios = []
    for parts in (1, 4):
        config = ratio_config(**{"loss.layers": ("pooled",), "grad_accumulation": parts})
        run = set_up(config, 2, model=LayerDrops(broadcast=False))
        _, metrics = run.step(run.state, run.data, run.order)
        ratios.append([metrics[f"gradient_ratio_{name}"][0] for name in ("gini", "kl")])
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=1e-4)


def test_weights_rise_over_the_ramp():
    config = ratio_config(**{"loss.ramp_epochs": 2.0})
    run = set_up(config)
    state, seen = run.state, []
    for _ in range(3):
        state, metrics = run.step(state, run.data, run.order)
        terms = 0.5 * metrics["gini"][0] + 0.5 * metrics["kl"][0]
        seen.append((metrics["loss"][0] - metrics["ce"][0]) / terms)
    np.testing.assert_allclose(seen, np.arange(1, 4) / (2 * 18), rtol=1e-3)


def test_too_few_examples_per_class_are_a_warning_with_a_way_out():
    text = examples_per_class(64, 102)
    assert text.startswith("warning: a batch holds 0.6 examples per class")
    assert "--config.batch_size=204" in text
