"""Groups of parameters, against optax by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax.config.change import changed
from gini_jax.errors import InputError
from gini_jax.models import create_model
from gini_jax.modes import summary
from gini_jax.training.groups import check_groups, groups_of
from gini_jax.training.optim import create_optimizer
from tests.helpers import tiny
from tests.helpers.runs import set_up

ROWS = (("head/.*", 10.0), ("stem/.*", 0.0), (".*/(bias|scale)", 1.0, 0.0))
PARAMS = {
    "stem": {"conv": {"kernel": 1.0}, "norm": {"bias": 2.0}},
    "block": {"conv": {"kernel": 3.0}, "norm": {"scale": 4.0}},
    "head": {"dense": {"kernel": 5.0, "bias": 6.0}},
}


def group_config(**changes):
    config = tiny.get_config("gini_kl")
    config.schedule.warmup_epochs = 0.0
    changed(config, changes)
    return config


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adamax"])
def test_groups_do_what_optax_does_by_hand(name):
    """Each group with an optimiser of its own, by optax's multi_transform."""
    config = group_config(**{"optimizer.name": name, "optimizer.weight_decay": 0.1}).optimizer

    def alone(factor, decay):
        own = config.copy_and_resolve_references()
        own.weight_decay = config.weight_decay * decay
        return create_optimizer(own, lambda step: 0.1 * factor)

    kinds = {"head": alone(10, 1), "frozen": optax.set_to_zero(), "plain": alone(1, 0)}
    labels = {
        "stem": {"conv": {"kernel": "frozen"}, "norm": {"bias": "frozen"}},
        "block": {"conv": {"kernel": "other"}, "norm": {"scale": "plain"}},
        "head": {"dense": {"kernel": "head", "bias": "head"}},
    }
    by_hand = optax.multi_transform(kinds | {"other": alone(1, 1)}, labels)
    config.groups = ROWS
    grouped = create_optimizer(config, lambda step: 0.1)
    ends = []
    for optimizer in (by_hand, grouped):
        params = jax.tree.map(jnp.float32, PARAMS)
        state = optimizer.init(params)
        for step in range(3):
            gradient = jax.tree.map(lambda p, s=step: 0.1 * p + s, params)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *ends)
    assert ends[1]["stem"]["conv"]["kernel"] == 1


def test_a_run_with_a_frozen_stem_and_learned_terms():
    config = group_config(**{"optimizer.groups": (("stem/.*", 0.0),), "loss.start_epoch": 1})
    with config.unlocked():
        config.loss.terms = {"relation": 1.0}
        config.objective = "relation"
    run = set_up(config)
    before = jax.device_get(run.state)
    after = jax.device_get(run.step(run.state, run.data, run.order)[0])
    same = partial(np.testing.assert_array_equal)
    jax.tree.map(same, after.params["stem"], before.params["stem"])
    moved = lambda a, b: np.any(np.ravel(a) != np.ravel(b))  # noqa: E731
    assert all(jax.tree.leaves(jax.tree.map(moved, after.params["head"], before.params["head"])))
    assert any(jax.tree.leaves(jax.tree.map(moved, after.terms.params, before.terms.params)))


def test_the_summary_counts_the_groups(tmp_path, capsys):
    summary.main(
        group_config(**{"optimizer.groups": (("head/.*", 10.0), (".*bias", 1.0, 0.0))}), tmp_path
    )
    out = capsys.readouterr().out
    assert "head/.*: 170 parameters, learning rate x 10" in out  # 16 x 10 + 10
    assert ".*bias" in out
    assert "no weight decay" in out


@pytest.mark.parametrize(
    "rows",
    [("head/.*",), (("head/.*",), ("(", 1.0)), (("a", -1.0),), (("a", 1.0, 0.5),), ((1, 2),)],
)
def test_a_row_that_is_no_group_is_refused(rows):
    with pytest.raises(InputError, match=r"optimizer\.groups has the row"):
        groups_of(rows)


def test_a_pattern_without_a_parameter_is_refused():
    with pytest.raises(InputError, match=r"pattern in optimizer\.groups 'heads/dense/kernel'"):
        check_groups((("heads/dense/kernel", 1.0),), create_model("resnet_digits", 3))
