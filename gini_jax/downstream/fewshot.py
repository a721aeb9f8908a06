"""Few examples: distinguishing classes that training did not see.

There are 600 episodes. Each has 5 held-out classes, with 1 or 5 images of each class to learn from
and up to 15 others to classify. The nearest class mean of the normalised pooled features decides
(Snell et al., "Prototypical Networks", arXiv 1703.05175; the normalisation is that of Wang et al.,
"SimpleShot", arXiv 1911.04623). The episodes are the same for all runs on the same images.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gini_jax.data.protocols import HELD_OUT
from gini_jax.downstream.subject import Subject
from gini_jax.evals.accuracy import accuracy
from gini_jax.evals.inputs import unit

WAYS, QUERIES, EPISODES = 5, 15, 600
KEYS = {
    "fewshot_1": ("5-way 1-shot accuracy on held-out classes", True),
    "fewshot_5": ("5-way 5-shot accuracy on held-out classes", True),
}


def unfit(subject: Subject) -> str:
    """The reason why a run does not fit: it needs five held-out classes with six images each."""
    held = subject.dataset.splits.get(HELD_OUT)
    if held is None or (np.bincount(held.labels) > 5).sum() < WAYS:
        return (
            f"it needs {WAYS} classes that training did not see, with 6 test images or more; train "
            f"with --config.dataset.held_out_classes={WAYS} or more"
        )
    return ""


def measure(subject: Subject) -> dict[str, Any]:
    """The accuracies, and half the width of their 95 % intervals over the episodes."""
    assert subject.held_out is not None
    found = {}
    for shots in (1, 5):
        scores = episodes(subject.held_out.pooled, subject.held_out.labels, shots)
        found[f"fewshot_{shots}"] = float(scores.mean())
        found[f"fewshot_{shots}_interval"] = float(1.96 * scores.std() / len(scores) ** 0.5)
    return found


def episodes(
    features: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"],
    shots: int,
    count: int = EPISODES,
    seed: int = 0,
) -> Float[np.ndarray, " E"]:
    """The accuracy of each episode.

    Args:
        features: of the images.
        labels: their classes; a class with no more than `shots` images is left out.
        shots: images of each class to learn from.
        count: `E`.
        seed: the seed of the draws.

    Examples:
        >>> episodes(np.repeat(np.eye(5), 4, axis=0), np.repeat(np.arange(5), 4), 1, 3)
        array([1., 1., 1.])
    """
    vectors = unit(features)
    rows = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    rows = [own for own in rows if len(own) > shots]
    rng, scores = np.random.default_rng(seed), []
    for _ in range(count):
        classes = rng.permutation(len(rows))[:WAYS]
        drawn = [rng.permutation(rows[k])[: shots + QUERIES] for k in classes]
        means = np.stack([vectors[own[:shots]].mean(axis=0) for own in drawn])
        queries = np.concatenate([vectors[own[shots:]] for own in drawn])
        truth = np.repeat(np.arange(len(drawn)), [len(own) - shots for own in drawn])
        distance = np.round((means**2).sum(axis=1) - 2 * queries @ means.T, 10)
        scores.append(accuracy(-distance, truth))  # ties: each mean is equally likely
    return np.array(scores)
