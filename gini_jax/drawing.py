"""How all pictures are drawn: styles, files, and lines with a band."""

import base64
import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from gini_jax.errors import RunError, first_line
from gini_jax.storage import write

# A "$" in the name of a class, a run or a setting is a plain character: it starts no formula.
PLAIN: Any = {"text.parse_math": False}


_lock = threading.RLock()


@contextlib.contextmanager
def _styled(style: Any) -> Iterator[None]:
    """A context with settings of matplotlib, which are the same for all threads: one at a time."""
    with _lock, mpl.rc_context(style):
        yield


def plain_numbers(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers, not formulas."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def by_features_kept(axis: Any) -> None:
    """The horizontal axis of curves over the number of features kept."""
    axis.set_xscale("log", base=2)
    plain_numbers(axis.xaxis)
    axis.set_xlabel("features kept")
    axis.grid()


def try_to_draw(name: str, draw: Callable[..., object], *arguments: Any) -> bool:
    """Draws a picture; one that cannot be drawn is named in a warning, and left out.

    Examples:
        >>> try_to_draw("nothing.png", lambda: None)
        True
    """
    try:
        with _styled(PLAIN):
            draw(*arguments)
        return True
    except RunError:  # nothing can be written there
        raise
    except Exception as error:  # a picture does not end a run
        reason = f"{type(error).__name__}: {first_line(error)}"
        print(f"warning: {name} is left out, it could not be drawn ({reason})", file=sys.stderr)
        return False


# Greys and colours that stand out from white and from near-black alike.
STYLE: Any = PLAIN | {
    "text.color": "#7d8590",
    "axes.labelcolor": "#7d8590",
    "axes.edgecolor": "#7d8590",
    "axes.titlecolor": "#7d8590",
    "xtick.color": "#7d8590",
    "ytick.color": "#7d8590",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.color": "#7d8590",
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "gini_jax",
}
COLOURS = [
    "#4c8dd6",
    "#e0803a",
    "#3fa66b",
    "#b068c8",
    "#d9534f",
    "#8a8f3c",
    "#3aa6a6",
    "#d07ab0",
    "#6a6fd8",
    "#a8743f",
    "#79b23a",
    "#8a939e",
]


def drawn(draw: Callable[..., Figure], *arguments: Any, pixels: bool = False) -> str:
    """A figure as inline SVG, or, where it has many points, as a PNG inside an img element."""
    if pixels:
        encoded = base64.b64encode(as_png(draw, *arguments, style=STYLE)).decode()
        return f'<img alt="" style="max-width:100%" src="data:image/png;base64,{encoded}">'
    with _styled(STYLE):
        text = io.StringIO()
        draw(*arguments).savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def as_png(draw: Callable[..., Figure], *arguments: Any, style: Any = PLAIN) -> bytes:
    """A figure as a PNG, by default on white."""
    data = io.BytesIO()
    with _styled(style):
        draw(*arguments).savefig(data, format="png", dpi=110)
    return data.getvalue()


def save(png: Path, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Draws a figure, and writes it as a PNG."""
    write(png, as_png(draw, *arguments))


def mean_and_range(
    axis: Any,
    x: Sequence[float] | np.ndarray,
    values: Float[np.ndarray, "runs S"],
    colour: str,
    label: str | None = None,
    style: str = "-",
) -> None:
    """A line of means over runs, with a band from the lowest to the highest."""
    axis.plot(x, values.mean(axis=0), style, color=colour, label=label, lw=1.4)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
