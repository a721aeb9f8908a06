"""Sections of a page, and their pictures, which several processes may draw."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import joblib

from gini_jax.drawing import drawn
from gini_jax.errors import first_line


class Picture(NamedTuple):
    """A picture that has yet to be drawn.

    Attributes:
        draw: makes the figure.
        arguments: of `draw`.
        pixels: whether it has too many points for SVG.
    """

    draw: Callable[..., Any]
    arguments: tuple[Any, ...]
    pixels: bool = False


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        text: what the picture shows, in words.
        picture: SVG, or an img element; "" for none; or what has yet to be drawn.
        table: rows of cells, the head first; empty for none.
    """

    title: str
    text: str
    picture: str | Picture = ""
    table: list[list[str]] = []  # noqa: RUF012


def picture(
    title: str, text: str, draw: Callable[..., Any], *arguments: Any, pixels: bool = False
) -> Section:
    """A section with a picture, which is drawn later."""
    return Section(title, text, Picture(draw, arguments, pixels))


def with_pictures(sections: list[Section], in_processes: bool) -> list[Section]:
    """The sections with their pictures; if one cannot be drawn, its section says why.

    Args:
        sections: of a page.
        in_processes: whether to draw on all cores, in processes that import what they need.
    """
    waiting = [(i, s.picture) for i, s in enumerate(sections) if isinstance(s.picture, Picture)]
    jobs = [joblib.delayed(_html)(one) for _, one in waiting]
    pictures = joblib.Parallel(n_jobs=-1 if in_processes else 1)(jobs)
    for (i, _), (html, reason) in zip(waiting, pictures, strict=True):
        title, text, *_ = sections[i]
        if reason:
            print(f"warning: the picture {title!r} could not be drawn ({reason})", file=sys.stderr)
            text = f"This picture is left out: it could not be drawn ({reason})."
        sections[i] = Section(title, text, html)
    return sections


def _html(one: Picture) -> tuple[str, str]:
    """A picture, or the reason why it cannot be drawn: that must not fail the page."""
    try:
        return drawn(one.draw, *one.arguments, pixels=one.pixels), ""
    except Exception as error:
        return "", f"{type(error).__name__}: {first_line(error)}"
