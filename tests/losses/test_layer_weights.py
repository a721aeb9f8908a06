"""A weight for each layer: in the loss, in the config, on the command line, in a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax.config.change import changed
from gini_jax.config.files import from_saved
from gini_jax.errors import InputError
from gini_jax.losses import discriminability_loss
from gini_jax.losses.objective import Objective
from gini_jax.losses.term import Outputs
from gini_jax.training.checks import check_config
from tests.helpers import tiny
from tests.helpers.program import Program
from tests.helpers.runs import lines_of


def test_a_weight_for_each_layer_is_the_papers_joint_objective():
    """Value and gradient equal `discriminability_loss`, on drawn features of two layers."""
    rng = np.random.default_rng(0)
    features = {
        "stage1": jnp.asarray(rng.normal(size=(12, 3, 3, 5)), jnp.float32),
        "stage2": jnp.asarray(rng.normal(size=(12, 7)), jnp.float32),
    }
    labels = jax.nn.one_hot(jnp.arange(12) % 4, 4)
    weights = {"gini": {"stage1": 0.3, "stage2": 0.7}, "kl": {"stage1": 0.0, "stage2": 2.0}}
    objective = Objective({name: {"weight": own} for name, own in weights.items()})

    def ours(features):
        outputs = Outputs(features, labels, labels)
        state = objective.init(outputs)
        return objective.of_sums(objective.sums(outputs), state, 1.0).added

    def theirs(features):
        given = {"gini_weight": weights["gini"], "kl_weight": weights["kl"]}
        return discriminability_loss(features, labels, **given)[0]

    value, got = jax.jit(jax.value_and_grad(ours))(features)
    expected, gradient = jax.jit(jax.value_and_grad(theirs))(features)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, gradient)


@pytest.mark.slow
def test_a_run_has_a_weight_for_each_layer(tmp_path):
    layers = {"loss.layers": ("stage1", "stage2"), "loss.start_epoch": 1, "num_epochs": 1}
    weights = {"loss.terms.gini.weight.stage1": 0.25, "loss.terms.gini.weight.stage2": 1.0}
    both = changed(tiny.get_config("gini"), layers | weights)
    assert both.loss.terms.to_dict() == {"gini": {"weight": {"stage1": 0.25, "stage2": 1.0}}}
    given = [f"--config.{path}={value}" for path, value in (layers | weights).items()]
    Program(f"--workdir={tmp_path}/run", "--config=tests/helpers/tiny.py:gini", *given).finish()
    alike = [f"--config.{path}={value}" for path, value in layers.items()]
    alike += ["--config.loss.terms.gini=1.0"]
    Program(f"--workdir={tmp_path}/alike", "--config=tests/helpers/tiny.py:gini", *alike).finish()
    first, one = lines_of(tmp_path / "run")[0], lines_of(tmp_path / "alike")[0]
    assert 0 < first["train_gini"] < one["train_gini"]
    assert first["train_loss"] == pytest.approx(first["train_ce"] + first["train_gini"], rel=1e-5)
    assert first["train_gradient_ratio_gini"] > 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["loss"]["terms"] == {"gini": {"weight": {"stage1": 0.25, "stage2": 1.0}}}
    again = from_saved(saved)
    assert again.loss.terms.to_dict() == both.loss.terms.to_dict()


@pytest.mark.parametrize(
    ("objective", "given", "text"),
    [
        ("gini", {"loss.terms.gini.weight.stage9": 0.5}, "did you mean 'stage2'"),
        ("gini", {"loss.terms.gini.weight.stage2": 0.0}, "no layer has a weight"),
        ("kl", {"loss.terms.kl.weight.stage2": -1.0}, "must lie in"),
        (
            "cosface",
            {"loss.terms.cosface.weight.stage2": 0.5},
            "does not act on the features of layers",
        ),
        (
            "kl",
            {"loss.terms.kl.weight.stage2": 0.1, "loss.hold_gradient_ratios": True},
            "one ratio for a term",
        ),
    ],
)
def test_weights_of_layers_that_cannot_be_are_refused(objective, given, text):
    with pytest.raises(InputError, match=text):
        check_config(changed(tiny.get_config(objective), given), 1)
