"""Trains the members of a sweep one after the other, in this process.

Members that differ in their seed alone share their compiled programs, unless a sweep has so many
other members that the programs would fill the memory.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from gini_jax.devices import shared_programs
from gini_jax.errors import Stopped
from gini_jax.modes.executors.member import run_member
from gini_jax.modes.members import Member

FLAGS: dict[str, Any] = {}
MOST_HELD = 8  # members whose programs are kept until the end


def run(
    members: Sequence[Member], workdir: Path, starting: Callable[[str], None]
) -> Iterator[tuple[Member, Exception | None]]:
    """Trains members in their order.

    Raises:
        Stopped: after a signal, with the member saved.
    """
    held: dict[str, dict[Any, Any]] = {_but_seed(member): {} for member in members}
    share = len(held) <= min(MOST_HELD, len(members) - 1)
    for member in members:
        starting(f"now {member.name}")
        with shared_programs(held[_but_seed(member)] if share else {}):
            ended = _error_of(member, workdir)
        if not share:
            jax.clear_caches()
        yield member, ended
    jax.clear_caches()


def _but_seed(member: Member) -> str:
    return repr({**member.config.to_dict(), "seed": 0})


def _error_of(member: Member, workdir: Path) -> Exception | None:
    """Trains a member; returns the error that ended it, if any."""
    try:
        run_member(member.config, workdir / member.name)
    except Stopped as stopped:
        raise Stopped(f"{member.name}: {stopped}", stopped.status) from stopped
    except Exception as error:
        return error
    return None
