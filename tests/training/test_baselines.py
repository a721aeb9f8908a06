"""The losses beside the paper's in training: heads, learned parameters, views, missing labels."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax import load, losses
from gini_jax.config.change import set_value
from gini_jax.data import load_dataset
from gini_jax.data.sampling import epoch_order
from gini_jax.data.source import Dataset
from gini_jax.errors import InputError
from gini_jax.losses.term import Outputs
from gini_jax.models import create_model, from_torch, to_torch
from gini_jax.modes import export
from gini_jax.modes.members import member_command, members_of
from gini_jax.modes.train import main as train
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import build_experiment, check_before_data
from gini_jax.training.pseudo_labels import mean_where, with_own_labels
from gini_jax.training.state import init_state
from tests.helpers.runs import set_up
from tests.helpers.small_networks import first_batch, headed, seen, started_config

# ------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet_digits", {}),
        pytest.param("cvt13", {"blocks": (1, 1, 1)}, marks=pytest.mark.slow),
    ],
)
def test_a_cosine_head_gives_scaled_cosines(name, settings):
    model = create_model(name, 7, head="cosine", scale=5.0, **settings)
    images = jnp.asarray(np.random.default_rng(0).random((3, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    logits, features = jax.jit(model.apply)(variables, images)
    x = np.asarray(features["pooled"], np.float64)
    w = np.asarray(variables["params"]["head"]["dense"]["kernel"], np.float64)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=0))
    np.testing.assert_allclose(logits, 5 * cosines, rtol=1e-4, atol=1e-4)
    assert set(variables["params"]["head"]["dense"]) == {"kernel"}


def test_a_probe_learns_while_the_network_below_does_not():
    model, images = create_model("resnet_digits", 4, head="probe"), jnp.ones((2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def ce(params):
        logits, _ = model.apply({**variables, "params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1])).mean()

    gradients = jax.jit(jax.grad(ce))(variables["params"])
    of_head = gradients.pop("head")
    assert all(np.any(x) for x in jax.tree.leaves(of_head))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), gradients)


@pytest.mark.slow
def test_pytorch_weights_start_a_cosine_head_and_it_is_exported_as_a_program_alone(tmp_path):
    model = create_model("resnet18", 10, width=8)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    again = from_torch("resnet18", to_torch("resnet18", variables), head="cosine")
    kernel = variables["params"]["head"]["dense"]["kernel"]
    np.testing.assert_array_equal(again["params"]["head"]["dense"]["kernel"], kernel)
    train(started_config("cosface", num_epochs=1), tmp_path, devices=jax.devices()[:1])
    assert load(tmp_path).model.head == "cosine"
    with pytest.raises(InputError, match="--format=stablehlo"):
        export.main(None, tmp_path)
    assert export.main(None, tmp_path, format="stablehlo").exists()


# ------------------------------------------------------------- steps

OBJECTIVES = (
    "relation",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("arcface", "proxy_anchor", "simclr")),
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("relation_triplet", "remarnet")),
)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_that_of_the_whole_batch_on_any_number_of_devices(objective):
    ends = []
    for n in (1, 2, 8):
        run = headed(started_config(objective), n)
        state, metrics = run.step(run.state, run.data, run.order)
        ends.append(jax.device_get((state.params, state.terms.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), ends[0], end)


@pytest.mark.parametrize(("objective", "margin"), [("cosface", 0.35), ("arcface", 0.5)])
def test_cross_entropy_and_a_margin_term_of_weight_1_are_the_loss_with_the_margin(
    objective, margin
):
    config = started_config(objective)
    run = headed(config)
    _, batch, logits, _ = seen(run, *first_batch(run, config))
    _, metrics = run.step(run.state, run.data, run.order)
    cosines, rows = np.asarray(logits, np.float64) / 16, np.asarray(batch.labels)
    if objective == "cosface":
        target = cosines - margin
    else:
        target = np.cos(np.arccos(cosines) + margin)
        target = np.where(cosines > -np.cos(margin), target, cosines - margin * np.sin(margin))
    moved = 16 * np.where(rows > 0, target, cosines)
    log_p = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
    expected = -(rows * log_p).sum(axis=1).mean()
    np.testing.assert_allclose(np.ravel(metrics["loss"])[0], expected, rtol=1e-4)


@pytest.mark.parametrize("objective", ["proxy_anchor", "relation"])
def test_the_optimiser_updates_what_a_term_learns(objective):
    """By hand: minus the learning rate times gradient and weight decay, at the first step."""
    config = started_config(
        objective, **{"schedule.name": "constant", "schedule.learning_rate": 0.1}
    )
    run = headed(config)
    state, batch, _, features = seen(run, *first_batch(run, config))
    own = state.terms.params[objective]["stage2"]

    def loss(own):
        if objective == "relation":
            return losses.relation_loss(features, batch.labels, own)
        return 0.1 * losses.proxy_anchor_loss(features, batch.labels, own)

    gradient, decay = jax.grad(loss)(own), config.optimizer.weight_decay
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + decay * p), own, gradient)
    after, _ = run.step(run.state, run.data, run.order)
    found = jax.device_get(after.terms.params[objective]["stage2"])
    found = jax.tree.map(lambda x, like: np.reshape(x, (-1, *like.shape))[0], found, own)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def test_simclr_sees_two_views_and_no_labels():
    config = started_config("simclr", **{"augment.crop_padding": 1})
    run = headed(config)
    images, labels = first_batch(run, config)
    _, batch, _, _ = seen(run, images, labels)
    first, second = np.split(np.asarray(batch.images), 2)
    assert len(first) == config.batch_size
    assert (first != second).any()
    np.testing.assert_array_equal(*np.split(np.asarray(batch.labels), 2))
    ends = []
    for move in (0, 3):
        run = headed(config)
        data = run.data._replace(labels=(run.data.labels + move) % 10)
        state, _ = run.step(run.state, data, run.order)
        ends.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, ends[0]["body"], ends[1]["body"])
    assert np.any(ends[0]["head"]["dense"]["kernel"] != ends[1]["head"]["dense"]["kernel"])


def test_a_hierarchy_adds_the_cross_entropy_of_the_superclasses():
    config = started_config("hierarchy")
    digits = load_dataset(config.dataset)
    groups = tuple(k % 3 for k in range(10))
    dataset = Dataset(digits.splits, digits.class_names, 8, ("a", "b", "c"), groups)
    run = headed(config, dataset=dataset)
    _, batch, logits, _ = seen(run, *first_batch(run, config))
    _, metrics = run.step(run.state, run.data, run.order)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    k = np.asarray(batch.labels).argmax(axis=1)
    of_group = np.array([p[i, np.array(groups) == groups[c]].sum() for i, c in enumerate(k)])
    np.testing.assert_allclose(
        np.ravel(metrics["hierarchy"])[0], -np.log(of_group).mean(), rtol=1e-5
    )
    with pytest.raises(InputError, match="digits has none"):
        build_experiment(config, digits)


def test_a_run_with_trainable_parameters_goes_on_where_it_was_saved(tmp_path):
    run = headed(started_config("remarnet"))
    state, _ = run.step(run.state, run.data, run.order)
    one = jax.tree.map(np.asarray, jax.device_get(state))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, one, {"best_step": 0})
    checkpoints.wait()
    back, _ = checkpoints.restore_newest(lambda: jax.tree.map(np.zeros_like, one))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, back, one)


# ------------------------------------------------------------- missing labels


def test_all_labels_kept_is_plain_training_to_the_last_bit():
    ends = []
    for labelled in (0, 1000):
        run = set_up(started_config("gini_kl", **{"dataset.labelled": labelled}))
        ends.append(jax.device_get(run.step(run.state, run.data, run.order)))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_each_class_keeps_as_many_labels_as_are_asked_for():
    config = started_config("ce").dataset
    whole = load_dataset(config).splits["train"].labels
    config.labelled = 5
    few = load_dataset(config).splits["train"].labels
    assert np.bincount(few + 1).tolist() == [1197 - 50, *[5] * 10]
    batches = epoch_order(started_config("ce"), 0, few)
    assert ((few[batches] >= 0).sum(axis=1) < 12).all()  # 2.7 of 64 on average
    np.testing.assert_array_equal(few[few >= 0], whole[few >= 0])
    config.labelled = 9
    more = load_dataset(config).splits["train"].labels
    np.testing.assert_array_equal(more[few >= 0], few[few >= 0])


@pytest.mark.parametrize("objective", ["gini_kl", pytest.param("supcon", marks=pytest.mark.slow)])
def test_unsure_images_change_nothing(objective):
    """No image reaches a confidence of 1: the gradient is that of the labelled ones alone."""
    config = started_config(objective, **{"dataset.labelled": 40, "loss.pseudo_confidence": 1.0})
    ends = []
    for n in (1, 2, 8):
        run = headed(config, n)
        state, metrics = run.step(run.state, run.data, run.order)
        ends.append(jax.device_get((state.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), ends[0], end)
    run = headed(config)
    images, labels = first_batch(run, config)
    state, batch, _, _ = seen(run, images, labels)
    kept = np.flatnonzero(labels >= 0)
    assert 10 < len(kept) < len(labels)

    def loss(params):
        logits, features = run.experiment.model.apply({"params": params}, batch.images[kept])
        rows = jax.nn.one_hot(labels[kept], 10)
        ce = optax.softmax_cross_entropy(logits, rows).mean()
        x = features["stage2"]
        if objective == "supcon":
            return ce + 0.5 * losses.supcon_loss(x, rows)
        return ce + losses.discriminability_loss(x, rows, gini_weight=0.5, kl_weight=0.5)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(np.ravel(ends[0][1]["loss"])[0], value, rtol=1e-5)
    norm = np.ravel(ends[0][1]["gradient_norm"])[0]
    np.testing.assert_allclose(norm, optax.global_norm(gradient), rtol=1e-4)


def test_sure_images_enter_with_the_networks_own_probabilities():
    logits = jnp.array([[4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    rows = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    own = with_own_labels(Outputs({}, logits, rows), 0.9)
    sure = 1 / (1 + np.exp(-4))
    np.testing.assert_allclose(own.labels[0], [sure, 1 - sure], rtol=1e-5)
    assert own.where.tolist() == [1, 0, 1]
    assert float(mean_where(jnp.array([2.0, 50.0, 4.0]), own.where)) == 3
    assert float(mean_where(jnp.ones(3), jnp.zeros(3))) == 0


@pytest.mark.slow
def test_a_run_with_few_labels_ends_with_all_its_numbers(tmp_path):
    config = started_config(
        "gini_kl", **{"dataset.labelled": 10, "num_epochs": 2, "evals": ("knn",)}
    )
    result = train(config, tmp_path, devices=jax.devices()[:1])
    assert result["probe_train_examples"] == 100
    assert 0 < result["knn_accuracy"] <= 1


# ------------------------------------------------------------- settings

WRONG = {
    "need different heads": ("ce", {"loss.terms": {"cosface": 1.0, "simclr": 1.0}}),
    "needs a cosine head, but model.head=linear": ("cosface", {"model.head": "linear"}),
    "the head is a probe": ("simclr", {"loss.hold_gradient_ratios": True}),
    "augment.mixup=1.0 needs every label": ("ce", {"dataset.labelled": 5, "augment.mixup": 1.0}),
    "dataset.sampler=class_balanced": (
        "ce",
        {"dataset.labelled": 5, "dataset.sampler": "class_balanced"},
    ),
    "temperature=0": ("supcon", {"loss.terms.supcon.temperature": 0.0}),
    "has no effect: the objective has no term supcon": (
        "ce",
        {"loss.terms.supcon.temperature": 0.2},
    ),
    "did you mean 'loss.terms.supcon.temperature'": (
        "supcon",
        {"loss.terms.supcon.temprature": 0.2},
    ),
    "did you mean 'hard'": ("triplet", {"loss.terms.triplet.triplets": "hart"}),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_combination_is_refused_before_any_data(text):
    objective, changes = WRONG[text]
    config = started_config(objective)
    for path, value in changes.items():
        if path == "loss.terms":
            with config.unlocked():
                config.loss.terms = value
                config.objective = "simclr_cosface"
        elif path.startswith("loss.terms."):
            with pytest.raises(InputError, match=text.replace(".", r"\.")):
                set_value(config, path, value)
                check_before_data(config, jax.devices()[:1])
            return
        else:
            config.update_from_flattened_dict({path: value})
    with pytest.raises(InputError, match=text.replace(".", r"\.")):
        check_before_data(config, jax.devices()[:1])


def test_a_terms_own_settings_are_used_and_varied_where_the_term_is():
    config = started_config("supcon", **{"loss.terms.supcon.temperature": 0.5})
    vary = ["loss.terms.triplet.triplets=all,hard"]
    members = {m.name: m for m in members_of(config, ["ce", "supcon", "triplet"], [0], vary)}
    assert list(members) == [
        "ce-seed0",
        "supcon-seed0",
        "triplet-loss.terms.triplet.triplets=all-seed0",
        "triplet-loss.terms.triplet.triplets=hard-seed0",
    ]
    terms = [member.config.loss.terms for member in members.values()]
    assert not terms[0] and terms[1].supcon.temperature == 0.5
    assert [term.triplet.triplets for term in terms[2:]] == ["all", "hard"]
    command = member_command(members["supcon-seed0"], Path("sweep"), [])
    assert "--config.loss.terms.supcon.temperature=0.5" in command
    config = members["supcon-seed0"].config
    run = headed(config)
    _, batch, _, features = seen(run, *first_batch(run, config))
    _, metrics = run.step(run.state, run.data, run.order)
    expected = losses.supcon_loss(features, batch.labels, temperature=0.5)
    np.testing.assert_allclose(np.ravel(metrics["supcon"])[0], expected, rtol=1e-5)
    assert init_state(run.experiment).terms.params is None


def test_a_state_without_learned_parameters_is_as_it_was():
    """So that checkpoints of runs before them can be read."""
    terms = init_state(set_up(started_config("gini_kl")).experiment).terms
    assert terms._fields == ("terms", "running", "norms")
    assert tuple(terms) == ({}, None, None)
