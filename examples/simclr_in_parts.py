"""SimCLR with a batch of 8,192 pairs of views, 512 at a time: plain JAX, on noisy digits."""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from gini_jax.losses import cached_value_and_grad, nt_xent_loss


def network(params, views):
    """An embedding of each of the two views."""
    return tuple(jax.nn.relu(x @ params["w1"]) @ params["w2"] for x in views)


def loss(embeddings):
    return nt_xent_loss(*embeddings, temperature=0.5, chunk_size=1024)


def train_step(params, images, key, batch=8192, parts=16):
    """One step; the gradient is that of the whole batch, the memory that of one part."""
    rows, *noise = jax.random.split(key, 3)
    chosen = images[jax.random.randint(rows, (batch,), 0, len(images))]
    views = tuple(chosen + 0.1 * jax.random.normal(k, chosen.shape) for k in noise)
    value, gradient = cached_value_and_grad(loss, network, parts)(params, views)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), value


def main(steps: int = 20) -> float:
    """Trains on 1,500 digits without labels; returns the share of others whose nearest is right."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16.0, jnp.float32), digits.target
    keys = jax.random.split(jax.random.key(0), steps + 2)
    params = {
        "w1": jax.random.normal(keys[0], (64, 128)) / 8.0,
        "w2": jax.random.normal(keys[1], (128, 64)) / 11.0,
    }
    step = jax.jit(train_step, static_argnames=("batch", "parts"))
    for i, key in enumerate(keys[2:]):
        params, value = step(params, images[:1500], key)
        if i % 5 == 0:
            print(f"step {i}  loss {value:.3f}")
    (z,) = network(params, (images,))
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    nearest = (z[1500:] @ z[:1500].T).argmax(axis=1)
    return float((labels[nearest] == labels[1500:]).mean())


if __name__ == "__main__":
    print(f"nearest digit is right: {main():.3f}")
