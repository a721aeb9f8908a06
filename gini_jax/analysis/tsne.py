"""t-SNE in a process of its own: scikit-learn's can end the process that calls it.

Points that coincide overflow the stack of its quadtree (SIGSEGV).
"""

import io
import subprocess
import sys

import numpy as np
from jaxtyping import Float

LEAST = 4  # points; fewer have no neighbourhood to speak of
_SECONDS = 300


def tsne(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Places points in a plane so that neighbours stay neighbours.

    Args:
        points: at least four.

    Raises:
        RuntimeError: it could not be computed; the text says why.

    Examples:
        >>> tsne(np.random.default_rng(0).normal(size=(20, 5))).shape
        (20, 2)
    """
    if len(points) < LEAST:
        raise RuntimeError(f"{len(points)} points are too few")
    given = io.BytesIO()
    np.save(given, points)
    # -P: names of modules beside this file, such as statistics, are not those of the library.
    command = [sys.executable, "-P", __file__]
    try:
        found = subprocess.run(
            command, input=given.getvalue(), capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took more than {_SECONDS} s") from error
    if found.returncode < 0:
        raise RuntimeError(f"it ended by signal {-found.returncode}; do many points coincide?")
    if found.returncode:
        raise RuntimeError(found.stderr.decode(errors="replace").strip().splitlines()[-1])
    return np.load(io.BytesIO(found.stdout))


def _main() -> None:
    from sklearn.manifold import TSNE

    points = np.load(io.BytesIO(sys.stdin.buffer.read()))
    perplexity = min(30.0, (len(points) - 1) / 3)
    placed = TSNE(perplexity=perplexity, max_iter=500, random_state=0).fit_transform(points)
    np.save(sys.stdout.buffer, placed)


if __name__ == "__main__":
    _main()
