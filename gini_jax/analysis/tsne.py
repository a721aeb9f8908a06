"""t-SNE of points of which some may coincide."""

import numpy as np
from jaxtyping import Float

LEAST = 4  # different points; fewer have no neighbourhood to speak of


def tsne(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Places points in a plane so that neighbours stay neighbours.

    Points that agree in six digits are placed once: many that coincide would overflow the stack of
    scikit-learn's quadtree, which ends the process.

    Args:
        points: at least four different ones.

    Raises:
        RuntimeError: they are fewer.

    Examples:
        >>> tsne(np.random.default_rng(0).normal(size=(20, 5))).shape
        (20, 2)
    """
    from sklearn.manifold import TSNE

    scale = max(float(np.abs(points).max(initial=0.0)), 1e-30)
    different, place = np.unique(np.round(points / scale, 6), axis=0, return_inverse=True)
    if len(different) < LEAST:
        raise RuntimeError(f"{len(different)} different points are too few")
    perplexity = min(30.0, (len(different) - 1) / 3)
    placed = TSNE(perplexity=perplexity, max_iter=500, random_state=0).fit_transform(different)
    return placed[place.ravel()]
