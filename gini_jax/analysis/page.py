"""Whether a page shows what the files of its runs hold, so that nothing need be drawn again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from gini_jax.storage import is_remote
from gini_jax.version import package_digest

READ = {".json", ".jsonl", ".npz", ".npy"}  # what a page is drawn from
OTHER_FILES = {"checkpoints", "export", "tensorboard", "profile"}


def page_path(folders: Sequence[Path]) -> Path:
    """Where the page about some runs or sweeps lies; the first folder holds it."""
    return folders[0] / ("comparison.html" if len(folders) > 1 else "report.html")


def mark_of(folders: Sequence[Path]) -> str:
    """A comment for the end of a page: the digest of the package and of the runs' files.

    Args:
        folders: of runs and sweeps.

    Returns:
        "" in a bucket, where all files would have to be read.
    """
    if any(map(is_remote, folders)):
        return ""
    digest = hashlib.sha256(package_digest().encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            if path.suffix in READ and not OTHER_FILES & {*place.parts} and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{folder} {place} {content}\n".encode())
    return f"\n<!-- drawn from {digest.hexdigest()[:32]} -->\n"


def is_up_to_date(folders: Sequence[Path]) -> bool:
    """Whether the page about some runs or sweeps was drawn from their files as they are now."""
    path, mark = page_path(folders), mark_of(folders)
    return bool(mark) and path.is_file() and path.read_text(errors="replace").endswith(mark)
