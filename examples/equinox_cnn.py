"""The discriminability-enforcing loss in Equinox, channels first: a small network on the digits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from gini_jax.losses import discriminability_loss


class Network(eqx.Module):
    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __call__(self, image):  # [1, 8, 8]
        features = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(image))))  # [32, 4, 4]
        return self.head(features.mean(axis=(1, 2))), features  # what the terms act on


def loss_fn(model, images, labels):
    logits, features = jax.vmap(model)(images)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    added, terms = discriminability_loss(features, labels, num_classes=10, axis=1)
    return ce + added, terms


@eqx.filter_jit
def train_step(model, optimizer, opt_state, images, labels):
    value_and_grad = eqx.filter_value_and_grad(loss_fn, has_aux=True)
    (loss, terms), gradient = value_and_grad(model, images, labels)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss, terms


def main(steps: int = 300) -> float:
    """Trains, and returns the accuracy on held-out images."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 1, 8, 8) / 16.0, jnp.float32)
    labels = jnp.asarray(labels)
    keys = jax.random.split(jax.random.key(0), 3)
    model = Network(
        eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
        eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1]),
        eqx.nn.Linear(32, 10, key=keys[2]),
    )
    optimizer = optax.adam(0.02)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    for step in range(steps):
        batch = slice(step * 100 % 1400, step * 100 % 1400 + 100)
        model, state, loss, terms = train_step(
            model, optimizer, state, images[batch], labels[batch]
        )
        if step % 100 == 0:
            print(f"step {step}  loss {loss:.3f}  gini {terms['gini']:.3f}  kl {terms['kl']:.3f}")
    predicted = jax.vmap(model)(images[1500:])[0].argmax(axis=1)
    accuracy = float((predicted == labels[1500:]).mean())
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
