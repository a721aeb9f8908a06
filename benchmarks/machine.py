"""What kind of machine a benchmark runs on, and figures by kind."""

import json
from pathlib import Path
from typing import Any

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # widest first


def kind_of_processor() -> str:
    """The processor's widest vector instructions, which decide the speed of the CPU step most.

    Examples:
        >>> kind_of_processor() in {*VECTORS.values(), "unknown"}
        True
    """
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    return next((name for flag, name in VECTORS.items() if flag in flags), "unknown")


def write_by_kind(path: Path, report: dict[str, Any]) -> None:
    """Writes figures under this machine's kind of processor; those of other kinds stay."""
    kinds = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kinds | {kind_of_processor(): report}, indent=2) + "\n")
