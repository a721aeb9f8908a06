"""Optimisers equal PyTorch's, schedules their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax.config.change import default_config, set_component
from gini_jax.errors import InputError
from gini_jax.training.optim import create_optimizer
from gini_jax.training.schedules import create_schedule


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw", "adamax"])
def test_twenty_steps_equal_those_of_pytorch(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    whole = default_config()
    own = {"nesterov": True} if name == "nesterov" else {}
    set_component(whole, "optimizer", name.replace("nesterov", "sgd"), weight_decay=0.05, **own)
    config = whole.optimizer
    weights = np.random.default_rng(0).normal(size=8).astype(np.float32)
    peer = torch.nn.Parameter(torch.tensor(weights))
    sgd = {"momentum": 0.9, "nesterov": name == "nesterov"}
    cls, extra = {
        "sgd": (torch.optim.SGD, sgd),
        "nesterov": (torch.optim.SGD, sgd),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
        "adamax": (torch.optim.Adamax, {}),
    }[name]
    torch_optimizer = cls([peer], lr=0.03, weight_decay=0.05, **extra)
    optimizer = create_optimizer(config, lambda step: 0.03)
    params = jnp.asarray(weights)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: (jnp.sin(p) * p).sum())(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        torch_optimizer.zero_grad()
        (peer.sin() * peer).sum().backward()
        torch_optimizer.step()
        params, state = step(params, state)
    np.testing.assert_allclose(params, peer.detach().numpy(), rtol=1e-4, atol=1e-5)


def _schedule(name, steps_per_epoch=10, num_epochs=100, **changes):
    config = default_config()
    set_component(config, "schedule", name, learning_rate=0.1, **changes)
    return create_schedule(config.schedule, steps_per_epoch, num_epochs)


def test_step_decay_counts_epochs():
    schedule = _schedule("step", boundaries=(60, 80), factor=0.2)
    values = [float(schedule(step)) for step in (0, 599, 600, 799, 800, 999)]
    np.testing.assert_allclose(values, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004], rtol=1e-5)


def test_warm_up_is_linear_and_moves_no_boundary():
    schedule = _schedule("step", boundaries=(60,), warmup_epochs=5.0)
    values = [float(schedule(step)) for step in (0, 25, 50, 599, 600)]
    np.testing.assert_allclose(values, [0, 0.05, 0.1, 0.1, 0.02], rtol=1e-5)


def test_cosine_ends_at_its_final_value():
    schedule = _schedule("cosine", final=0.01)
    half = 0.01 + (0.1 - 0.01) / 2
    values = [float(schedule(step)) for step in (0, 500, 1000)]
    np.testing.assert_allclose(values, [0.1, half, 0.01], rtol=1e-5)


def test_onecycle_peaks_where_it_is_told():
    schedule = _schedule("onecycle", onecycle_peak=0.2)
    assert np.argmax(jax.vmap(schedule)(jnp.arange(1000))) == 200


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warmup_epochs=100"):
        _schedule("cosine", warmup_epochs=100.0)
