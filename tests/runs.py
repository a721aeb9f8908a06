"""What tests look at in a run's folder, and what they break there."""

import json

TIMES = {"train_seconds", "images_per_second", "device"}


def without_times(result):
    return {key: value for key, value in result.items() if key not in TIMES}


def lines_of(workdir):
    """metrics.jsonl, times aside."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def steps_of(workdir):
    """Those of the whole checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def cut_in_half(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
