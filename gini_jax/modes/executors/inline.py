"""Trains the members of a sweep one after the other, in this process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from gini_jax.errors import Stopped
from gini_jax.modes.executors.member import run_member
from gini_jax.modes.members import Member

FLAGS: dict[str, Any] = {}


def run(
    members: Sequence[Member], workdir: Path, starting: Callable[[str], None]
) -> Iterator[tuple[Member, Exception | None]]:
    """Trains members in their order.

    Raises:
        Stopped: after a signal, with the member saved.
    """
    for member in members:
        starting(f"now {member.name}")
        ended: Exception | None = None
        try:
            run_member(member.config, workdir / member.name)
        except Stopped as stopped:
            raise Stopped(f"{member.name}: {stopped}", stopped.status) from stopped
        except Exception as error:
            ended = error
        jax.clear_caches()
        yield member, ended
