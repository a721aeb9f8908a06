"""What benchmarks/fuzz.py and benchmarks/soak.py found, as text."""

import json

from docs.speed_tables import RESULTS, as_table

KINDS = {
    "loss_inputs": "inputs of losses",
    "command_lines": "command lines",
    "files": "damaged files",
}


def fuzz() -> str:
    """Outcomes of random and damaged input."""
    report = json.loads((RESULTS / "fuzz.json").read_text())
    rows = []
    for kind, what in KINDS.items():
        found = report[kind]
        outcomes = [f"{count:,} {name}" for name, count in found["outcomes"].items()]
        rows.append([what, f"{found['tried']:,}", "; ".join(outcomes)])
    note = (
        f"jax {report['jax']}, {report['cores']} CPU cores. Nothing else was seen: no number that "
        "is not finite, no traceback, nothing executed. Files that were read all the same had "
        "their damage in bytes that nothing checks, such as pixels."
    )
    return "\n".join([as_table(["what", "tried", "outcomes"], rows), "", note])


def soak() -> str:
    """A run whose processes are killed."""
    report = json.loads((RESULTS / "soak.json").read_text())
    memory = [each["ratio"] for each in report["memory"]]
    files = [f"{each['early']:g} to {each['late']:g}" for each in report["open_files"]]
    return (
        f"{report['processes']} processes on {report['cores']} CPU cores, {report['epochs']} "
        f"epochs, fed from the host: after {report['kills']} kills (SIGKILL of a random process "
        f"after up to {report['most_seconds_between_kills']:g} seconds of training; all start "
        "again) the result, every line of the log and the names of all files equal those "
        "of an undisturbed run. From the second to the last quarter of that run, memory per "
        f"process changed by a factor of {min(memory):.2f} to {max(memory):.2f}; open files went "
        f"from {', '.join(files)} (`benchmarks/soak.py`)."
    )


FAULT_TABLES = {"fuzz": fuzz, "soak": soak}
