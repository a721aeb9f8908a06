"""The discriminability-enforcing loss in flax.linen: a small convolutional network on digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from gini_jax.losses import discriminability_loss


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        features = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))  # [N, 4, 4, 32]
        return nn.Dense(10)(features.mean(axis=(1, 2))), features  # what the terms act on


model, optimizer = Network(), optax.adam(0.02)


def loss_fn(params, images, labels):
    logits, features = model.apply(params, images)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    added, terms = discriminability_loss(features, labels, num_classes=10)
    return ce + added, terms


@jax.jit
def train_step(params, opt_state, images, labels):
    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, images, labels)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss, terms


def main(steps: int = 300) -> float:
    """Trains, and returns the accuracy on held-out images."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16.0, jnp.float32)
    labels = jnp.asarray(labels)
    params = model.init(jax.random.key(0), images[:1])
    opt_state = optimizer.init(params)
    for step in range(steps):
        batch = slice(step * 100 % 1400, step * 100 % 1400 + 100)
        params, opt_state, loss, terms = train_step(params, opt_state, images[batch], labels[batch])
        if step % 100 == 0:
            print(f"step {step}  loss {loss:.3f}  gini {terms['gini']:.3f}  kl {terms['kl']:.3f}")
    predicted = model.apply(params, images[1500:])[0].argmax(axis=1)
    accuracy = float((predicted == labels[1500:]).mean())
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
