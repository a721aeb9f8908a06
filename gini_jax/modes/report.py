"""Writes report.html of a run or of a sweep: tables, curves, features, confusions."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.analysis.report import write_report

USES: tuple[str, ...] = ()
FLAGS: dict[str, Any] = {}


def main(config: ConfigDict, workdir: Path) -> Path:
    """Writes the report of whatever a workdir holds.

    Args:
        config: not used; the runs bring their own.
        workdir: of a run or of a sweep.

    Returns:
        The path of the page.

    Raises:
        InputError: the workdir holds no finished run.
    """
    del config
    path = write_report(workdir)
    print(f"written to {path}; open it in any browser")
    return path
