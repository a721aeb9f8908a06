"""Writes a page about a run, a sweep or several of them: tables, curves, features, confusions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.analysis.page import is_up_to_date, page_path

USES: tuple[str, ...] = ()
FLAGS: dict[str, Any] = {"others": ((), tuple, "")}  # the other folders of --workdir


def main(config: ConfigDict, workdir: Path, *, others: Sequence[Path] = ()) -> Path:
    """Writes a report of the runs and sweeps in the workdirs.

    Args:
        config: not used; the runs bring their own.
        workdir: the folder of a run or sweep. The page is written there: report.html, or
            comparison.html if there are others.
        others: workdirs of runs and sweeps to compare with it.

    Returns:
        The path of the page.

    Raises:
        InputError: a workdir holds no finished run, or two runs are alike.
    """
    del config
    if is_up_to_date(folders := (workdir, *others)):
        path = page_path(folders)
        print(f"{path} shows these runs as they are; open it in any browser")
        return path
    from gini_jax.analysis.report import write_report
    from gini_jax.analysis.sweep_tables import RECORD, write_tables

    for folder in folders:
        if (folder / RECORD).exists():  # members may have ended since the sweep's last call
            write_tables(folder)
    path = write_report(workdir, *others)
    print(f"written to {path}; open it in any browser")
    return path
