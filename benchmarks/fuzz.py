"""Random and damaged input: every case ends in a finite result or in one clear error.

    python benchmarks/fuzz.py --out=results/fuzz.json [--kinds=command_lines --kinds=files]

Three kinds, a file each: inputs of the losses, command lines, and damaged files. A case that fails
is printed with what reproduces it. The tests run a short form of each.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

import jax
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fuzz_command_lines import fuzz_command_lines
from benchmarks.fuzz_files import fuzz_files
from benchmarks.fuzz_losses import fuzz_losses

KINDS = {
    "loss_inputs": fuzz_losses,
    "command_lines": fuzz_command_lines,
    "files": fuzz_files,
}


def main(argv: list[str]) -> None:
    """Runs the kinds, and writes what was seen of each."""
    del argv
    given_flags = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    out = Path(given_flags.out) if given_flags.out else None
    report = json.loads(out.read_text()) if out and out.exists() else {}
    report |= {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
    for kind in given_flags.kinds:
        start = time.monotonic()
        counts = KINDS[kind](given_flags[kind].value, given_flags.seed)
        report[kind] = {
            "tried": sum(counts.values()),
            "outcomes": dict(sorted(counts.items())),
            "seconds": round(time.monotonic() - start),
        }
        print(kind, json.dumps(report[kind]), flush=True)
        if out:
            out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("loss_inputs", 10_000, "Inputs of losses.")
    flags.DEFINE_integer("command_lines", 2_000, "Command lines.")
    flags.DEFINE_integer("files", 500, "Damaged files.")
    flags.DEFINE_multi_enum("kinds", list(KINDS), list(KINDS), "Which of them to run.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_string("out", "", "JSON file for the figures.")
    app.run(main)
