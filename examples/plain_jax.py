"""The discriminability-enforcing loss in plain JAX: a two-layer network on the digits."""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from gini_jax.losses import discriminability_loss


def network(params, images):
    """Logits, and the features that the terms act on."""
    features = jax.nn.relu(images @ params["w1"] + params["b1"])
    return features @ params["w2"] + params["b2"], features


def loss_fn(params, images, labels):
    logits, features = network(params, images)
    log_probabilities = jax.nn.log_softmax(logits)
    ce = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
    added, terms = discriminability_loss(features, labels, num_classes=10)
    return ce + added, terms


@jax.jit
def train_step(params, images, labels):
    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, images, labels)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), loss, terms


def main(steps: int = 300) -> float:
    """Trains, and returns the accuracy on held-out images."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)
    key1, key2 = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(key1, (64, 128)) / 8.0,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(key2, (128, 10)) / 11.0,
        "b2": jnp.zeros(10),
    }
    for step in range(steps):
        batch = slice(step * 100 % 1400, step * 100 % 1400 + 100)
        params, loss, terms = train_step(params, images[batch], labels[batch])
        if step % 100 == 0:
            print(f"step {step}  loss {loss:.3f}  gini {terms['gini']:.3f}  kl {terms['kl']:.3f}")
    predicted = network(params, images[1500:])[0].argmax(axis=1)
    accuracy = float((predicted == labels[1500:]).mean())
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
