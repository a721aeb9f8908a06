"""t-SNE of points, some of which may coincide."""

import numpy as np
from jaxtyping import Float

LEAST = 4  # different points; fewer have no meaningful neighbourhoods


def tsne(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Places points in a plane so that neighbours stay neighbours.

    Points that agree to six digits are placed once. Many coinciding points would overflow the stack
    of scikit-learn's quadtree and crash the process.

    Args:
        points: at least four different ones.

    Raises:
        RuntimeError: there are fewer.

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
