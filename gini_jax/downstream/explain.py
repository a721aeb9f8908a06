"""Explanations: the features that vote most for an image's class, and where they fire.

A feature's vote is its pooled activation times its weight for the predicted class, so the votes
add up to the logit minus its bias. A map over the image shows where a feature fires: the
activations of the last layer with more than one pixel, times the feature's gradient there, summed
over the channels (Draelos and Carin, HiResCAM, arXiv 2011.08891, for one feature at a time). Where
the pooled features are means over space of that layer, these are the feature's own activations.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from gini_jax.data.augment import centre_crop, standardize
from gini_jax.downstream.subject import Subject
from gini_jax.evals.features import profile_of
from gini_jax.trained import Trained
from gini_jax.training.state import feature_shapes, layers_before_logits, perturbation_shapes

KEYS: dict[str, tuple[str, bool]] = {}
VOTES = 4  # features shown of each image
EACH_RUN = True  # a picture for each group, of its first run


class Explanations(NamedTuple):
    """The features that vote for the classes of `N` images, `F` for each.

    Attributes:
        images: as the network is shown them.
        predicted: their classes.
        features: the channels with the largest votes, the largest first.
        votes: activation times weight.
        maps: where they fire, 0 to 1, at the image's size; zeros where it is not known.
        layer: the layer of the maps; "" if they are not known.
    """

    images: UInt8[np.ndarray, "N h w 3"]
    predicted: Int[np.ndarray, " N"]
    features: Int[np.ndarray, "N F"]
    votes: Float[np.ndarray, "N F"]
    maps: Float[np.ndarray, "N F h w"]
    layer: str


def unfit(subject: Subject) -> str:
    """The reason why a run does not fit: it needs a linear last layer."""
    if subject.trained.head is None:
        return "it needs a network with a linear last layer; train with --config.model.head=linear"
    return ""


def measure(subject: Subject) -> dict[str, Any]:
    """Explanations of test images: up to two right and two wrong predictions."""
    predicted, labels = subject.test.logits.argmax(axis=1), subject.test.labels
    right, wrong = (np.flatnonzero((predicted == labels) == x) for x in (True, False))
    rows = np.concatenate([right[:2], wrong[:2]])
    found = explained(subject.trained, subject.dataset.splits["test"].images[rows])
    profiles = profile_of(np.abs(subject.test.pooled), labels, subject.num_classes)
    arrays = found._asdict() | {"labels": labels[rows], "profiles": profiles[found.features]}
    arrays["layer"] = np.array(found.layer)
    return {f"explain/{key}": value for key, value in arrays.items()}


def explained(trained: Trained, stored: UInt8[np.ndarray, "N H W 3"]) -> Explanations:
    """The features that vote most for the predicted classes of images, as stored for training.

    Raises:
        AssertionError: the network has no linear last layer: `trained.head` is None.
    """
    head = trained.head
    assert head is not None
    pooled = trained.features(stored, layers=("pooled",))["pooled"]
    predicted = trained.probabilities(stored).argmax(axis=1)
    votes = pooled * head[:, predicted].T
    top = np.argsort(-votes, axis=1, kind="stable")[:, :VOTES]
    size = trained.image_size
    corner = (stored.shape[1] - size) // 2
    images = stored[:, corner : corner + size, corner : corner + size]
    maps = np.zeros((*top.shape, size, size), np.float32)
    layer = _layer_of_maps(trained)
    if layer:
        for i, fired in enumerate(_where_fired(trained, layer, jnp.asarray(images), top)):
            maps[i] = [_enlarged(one, size) for one in fired]
    return Explanations(images, predicted, top, np.take_along_axis(votes, top, axis=1), maps, layer)


def _layer_of_maps(trained: Trained) -> str:
    """The coarsest layer with several pixels or tokens that the logits depend on; "" if none."""
    layers = feature_shapes(trained.model, trained.image_size)
    reached = layers_before_logits(trained.model, trained.image_size)
    wide = {
        layer: (math.prod(there.shape[1:-1]), -there.shape[-1])
        for layer, there in layers.items()
        if layer in reached and math.prod(there.shape[1:-1]) > 1
    }
    return min(wide, key=wide.__getitem__) if wide else ""


def _where_fired(
    trained: Trained, layer: str, images: UInt8[Array, "N h w 3"], channels: Int[np.ndarray, "N F"]
) -> Float[np.ndarray, "N F y x"]:
    """A layer's activations times the gradients of pooled features, clipped below at 0."""
    model = trained.model
    seen = standardize(centre_crop(images, trained.image_size), trained.config.dataset)
    zeros = jax.tree.map(
        lambda one: jnp.zeros((len(images), *one.shape[1:]), one.dtype),
        perturbation_shapes(model, trained.image_size),
    )

    @jax.jit
    def maps(at_layer: jax.Array, variables: Any, seen: jax.Array) -> jax.Array:
        def pooled(at_layer: jax.Array) -> tuple[jax.Array, jax.Array]:
            perturbed = {**variables, "perturbations": {**zeros, layer: at_layer}}
            _, features = model.apply(perturbed, seen, train=False)  # type: ignore[misc]
            chosen = jnp.take_along_axis(features["pooled"], jnp.asarray(channels), axis=1)
            return chosen.sum(axis=0), features[layer]

        _, pull, there = jax.vjp(pooled, at_layer, has_aux=True)
        (gradients,) = jax.vmap(pull)(jnp.eye(channels.shape[1]))
        return jnp.maximum((gradients * there).astype(jnp.float32).sum(axis=-1), 0).swapaxes(0, 1)

    found = np.asarray(maps(zeros[layer], trained.variables, seen))
    side = math.isqrt(math.prod(found.shape[2:]))  # tokens, too, lie on a square
    return found.reshape(*found.shape[:2], -1, found.shape[3] if found.ndim == 4 else side)


def _enlarged(activation: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "H W"]:
    largest = max(float(activation.max()), 1e-12)
    small = Image.fromarray(np.clip(activation / largest, 0, 1).astype(np.float32))
    return np.clip(np.asarray(small.resize((size, size), Image.Resampling.BILINEAR)), 0, 1)


def draw(
    arrays: Mapping[str, Sequence[Mapping[str, np.ndarray]]], names: Sequence[str] = ()
) -> Figure:
    """A row for each image: the image, and its features' maps with their class profiles."""
    (runs,) = arrays.values()
    found = {key.partition("/")[2]: value for key, value in runs[0].items()}
    count, shown = found["features"].shape
    figure = Figure(figsize=(2.1 * (shown + 1), 2.6 * count + 0.3), layout="constrained")
    layer = str(found.get("layer", ""))
    seen = f"Where features fire, seen in {layer}" if layer else "No layer shows where they fire"
    figure.suptitle(f"The features that vote most. {seen}.", fontsize=8)
    axes = figure.subplots(2 * count, shown + 1, squeeze=False, height_ratios=[3, 1] * count)
    for i in range(count):
        first, below = axes[2 * i], axes[2 * i + 1]
        first[0].imshow(found["images"][i])
        label = _name(names, found["labels"][i]) if "labels" in found else ""
        predicted = _name(names, found["predicted"][i])
        told = f"{predicted}" if label in ("", predicted) else f"{predicted}, is {label}"
        first[0].set_title(told, fontsize=8)
        below[0].axis("off")
        for j in range(shown):
            axis, bars = first[j + 1], below[j + 1]
            axis.imshow(found["images"][i])
            if found["maps"][i, j].any():
                axis.imshow(found["maps"][i, j], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
            feature, vote = found["features"][i, j], found["votes"][i, j]
            axis.set_title(f"feature {feature}: {vote:+.2f}", fontsize=8)
            if "profiles" in found:
                _profile(bars, found["profiles"][i, j], found["predicted"][i], names)
            else:
                bars.axis("off")
        for axis in first:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def _profile(axis: Any, profile: np.ndarray, predicted: int, names: Sequence[str]) -> None:
    """Bars of the share of each class; the predicted class is marked, the largest one is named."""
    colours = ["#e0803a" if k == predicted else "#4c8dd6" for k in range(len(profile))]
    axis.bar(np.arange(len(profile)), profile, color=colours, width=1.0)
    axis.set_xticks([int(profile.argmax())], [_name(names, profile.argmax())], fontsize=7)
    axis.set_yticks([])


def _name(names: Sequence[str], k: Any) -> str:
    return names[int(k)] if len(names) else str(int(k))
