"""The version of the package, and a digest of its files."""

import hashlib
import sys
from pathlib import Path

__version__ = "0.3.0"


def package_digest() -> str:
    """Of the version, and the names, sizes and times of the package's files and configs."""
    root = Path(__file__).resolve().parent
    parts = [__version__, sys.version, str(root)]
    for folder in (root, (root / "configs").resolve()):
        for path in sorted(folder.rglob("*.py")):
            found = path.stat()
            parts.append(f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
