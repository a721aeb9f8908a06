"""What the scripts of this folder share: full-batch descent, and how results are kept."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import optax
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent.parent
COLOURS = ("#4c8dd6", "#e0803a", "#3fa66b", "#b068c8")
mpl.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25})


def descend(
    loss: Callable[..., jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    measure: Callable[[Any], Any] = lambda params: 0.0,
    records: int = 50,
    key: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Minimises a loss of the parameters, and measures at equal distances.

    With a key, the loss also takes one, another in each step.

    Returns:
        The parameters at the end, and what `measure` gave at the start of each of `records` parts.
    """

    def step(carry: Any, i: Any) -> Any:
        params, state = carry
        drawn = () if key is None else (jax.random.fold_in(key, i),)
        updates, state = optimizer.update(jax.grad(loss)(params, *drawn), state, params)
        return (optax.apply_updates(params, updates), state), None

    def part(carry: Any, of_part: Any) -> Any:
        measured = measure(carry[0])
        return jax.lax.scan(step, carry, of_part)[0], measured

    @jax.jit
    def run(params: Any) -> Any:
        carry, each = (params, optimizer.init(params)), steps // records
        numbers = jnp.arange(records * each).reshape(records, each)
        (params, _), measured = jax.lax.scan(part, carry, numbers)
        return params, measured

    return run(params)


def layers(key: jax.Array, *sizes: int) -> list[tuple[jax.Array, jax.Array]]:
    """The parameters of a fully connected network."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def run(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last hidden activations of a fully connected network, by a leaky ReLU, and its output."""
    for w, b in params[:-1]:
        x = jax.nn.leaky_relu(x @ w + b, 0.2)
    return x, x @ params[-1][0] + params[-1][1]


def arguments(about: str) -> argparse.Namespace:
    """The command line of a script: `--help` tells about it, `--write` keeps its results."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--write", action="store_true", help="also write the numbers and figure")
    return parser.parse_args()


def finish(name: str, numbers: dict[str, Any], seen: bool, figure: Figure) -> None:
    """Prints the numbers and whether the paper's effect was seen; `--write` keeps them.

    With `--write`, results/theory/NAME.json and docs/theory_NAME.png are written.
    """
    for key, value in numbers.items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    print(f"effect seen: {seen}")
    if "--write" in sys.argv:
        path = ROOT / "results" / "theory" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"effect_seen": seen, **numbers}, indent=2) + "\n")
        figure.savefig(ROOT / "docs" / f"theory_{name}.png", dpi=110)
