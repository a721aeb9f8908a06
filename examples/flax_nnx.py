"""The discriminability-enforcing loss in flax.nnx: a small convolutional network on the digits."""

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from gini_jax.losses import discriminability_loss


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))  # [N, 4, 4, 32]
        return self.head(features.mean(axis=(1, 2))), features  # what the terms act on


def loss_fn(model, images, labels):
    logits, features = model(images)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    added, terms = discriminability_loss(features, labels, num_classes=10)
    return ce + added, terms


@nnx.jit
def train_step(model, optimizer, images, labels):
    (loss, terms), gradient = nnx.value_and_grad(loss_fn, has_aux=True)(model, images, labels)
    optimizer.update(model, gradient)
    return loss, terms


def main(steps: int = 300) -> float:
    """Trains, and returns the accuracy on held-out images."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16.0, jnp.float32)
    labels = jnp.asarray(labels)
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    for step in range(steps):
        batch = slice(step * 100 % 1400, step * 100 % 1400 + 100)
        loss, terms = train_step(model, optimizer, images[batch], labels[batch])
        if step % 100 == 0:
            print(f"step {step}  loss {loss:.3f}  gini {terms['gini']:.3f}  kl {terms['kl']:.3f}")
    predicted = model(images[1500:])[0].argmax(axis=1)
    accuracy = float((predicted == labels[1500:]).mean())
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
