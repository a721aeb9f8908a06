"""Explanations: the features that vote most for an image's class, and where they fire.

A feature's vote is its pooled activation times its weight for the predicted class, so that the
votes add up to the logit less its bias. Where the pooled features are means over space of a layer,
the activation map of a feature is drawn over the image (as in Zhou et al., "Learning Deep Features
for Discriminative Localization", arXiv 1512.04150, for one feature at a time).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from gini_jax.benches.subject import Subject
from gini_jax.evals.features import profile_of
from gini_jax.trained import Trained

KEYS: dict[str, tuple[str, bool]] = {}
VOTES = 4  # features shown of each image
EACH_RUN = True  # a picture for each group, of its first run


class Explanations(NamedTuple):
    """What votes for the classes of `N` images, `F` features each.

    Attributes:
        images: as the network is shown them.
        predicted: their classes.
        features: the channels with the largest votes, the largest first.
        votes: activation times weight.
        maps: where they fire, 0 to 1, at the image's size; zeros where it is not known.
    """

    images: UInt8[np.ndarray, "N h w 3"]
    predicted: Int[np.ndarray, " N"]
    features: Int[np.ndarray, "N F"]
    votes: Float[np.ndarray, "N F"]
    maps: Float[np.ndarray, "N F h w"]


def unfit(subject: Subject) -> str:
    """It needs a linear last layer."""
    if subject.trained.head is None:
        return "it needs a network with a linear last layer; train with --config.model.head=linear"
    return ""


def measure(subject: Subject) -> dict[str, Any]:
    """Explanations of test images, two right and two wrong ones as far as there are."""
    predicted, labels = subject.test.logits.argmax(axis=1), subject.test.labels
    right, wrong = (np.flatnonzero((predicted == labels) == x) for x in (True, False))
    rows = np.concatenate([right[:2], wrong[:2]])
    found = explained(subject.trained, subject.dataset.splits["test"].images[rows])
    profiles = profile_of(np.abs(subject.test.pooled), labels, subject.num_classes)
    arrays = found._asdict() | {"labels": labels[rows], "profiles": profiles[found.features]}
    return {f"explain/{key}": value for key, value in arrays.items()}


def explained(trained: Trained, stored: UInt8[np.ndarray, "N H W 3"]) -> Explanations:
    """The features that vote most for the classes of images as the training stored them.

    Raises:
        AssertionError: the network has no linear last layer: `trained.head` is None.
    """
    head = trained.head
    assert head is not None
    features = trained.features(stored)
    pooled = features["pooled"]
    predicted = trained.probabilities(stored).argmax(axis=1)
    votes = pooled * head[:, predicted].T
    top = np.argsort(-votes, axis=1, kind="stable")[:, :VOTES]
    size = trained.image_size
    corner = (stored.shape[1] - size) // 2
    images = stored[:, corner : corner + size, corner : corner + size]
    maps = np.zeros((*top.shape, size, size), np.float32)
    spatial = _layer_of(features, pooled)
    if spatial is not None:
        for i, row in enumerate(top):
            maps[i] = [_enlarged(spatial[i, ..., c], size) for c in row]
    return Explanations(images, predicted, top, np.take_along_axis(votes, top, axis=1), maps)


def _layer_of(features: Mapping[str, np.ndarray], pooled: np.ndarray) -> np.ndarray | None:
    """The layer whose mean over space the pooled features are, unless it is a single pixel."""
    for values in features.values():
        fits = values.ndim == 4 and values.shape[-1] == pooled.shape[-1] and values.shape[1] > 1
        if fits and np.allclose(values.mean(axis=(1, 2)), pooled, rtol=1e-2, atol=1e-3):
            return values.astype(np.float32)
    return None


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
    figure = Figure(figsize=(2.1 * (shown + 1), 2.6 * count), layout="constrained")
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
