"""What kind of machine a benchmark runs on."""

from pathlib import Path

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
