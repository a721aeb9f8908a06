"""Plans of the shipped configs for TPU slices, and their tables in docs/scaling.md.

    pip install -e ".[tpu]"
    python benchmarks/scaling.py --data_dir=DIR     compiles what results/plans/ lacks; then tables
    python benchmarks/scaling.py --tables_only      tables alone, from the JSON files

Each plan is `launch.py --mode=plan` in bfloat16, at a fixed batch a chip. 28 plans take one to
two hours on 2 CPU cores.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps CIFAR-100 and Caltech-101.")
_TABLES_ONLY = flags.DEFINE_bool("tables_only", False, "Compile nothing.")

ROOT = Path(__file__).resolve().parent.parent
PLANS, PAGE = ROOT / "results" / "plans", ROOT / "docs" / "scaling.md"
CHIPS = {"v5e:2x4": 8, "v5p:2x2x2": 8, "v6e:2x4": 8, "v5e:8x8": 64, "v5e:16x16": 256}
CHIPS["v5p:8x8x16"] = 1024  # a v5e slice has at most 256
NETWORKS = ("resnet17", "resnet18", "resnet50", "cvt13")
PER_CHIP = {"cifar100": 128, "caltech101": 64}
# (config, topology, images a chip)
SHIPPED = [
    (f"{data}_{network}", topology, batch)
    for topology in ("v5e:2x4", "v5p:2x2x2", "v6e:2x4")
    for data, batch in PER_CHIP.items()
    for network in NETWORKS
]
SLICES = [
    ("cifar100_resnet50", topology, 32)
    for topology in ("v5e:2x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x16")
]


def path_of(run: tuple[str, str, int]) -> Path:
    """Where the plan of a run lies."""
    config, topology, batch = run
    return PLANS / f"{config}_{topology.replace(':', '_')}_{batch}.json"


def make(run: tuple[str, str, int]) -> None:
    """Compiles a plan, unless it is there."""
    if path_of(run).exists():
        return
    config, topology, batch = run
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [
                sys.executable,
                "launch.py",
                "--mode=plan",
                f"--config=configs/{config}.py",
                f"--topology={topology}",
                f"--workdir={workdir}",
                f"--config.batch_size={batch * CHIPS[topology]}",
                f"--config.eval_batch_size={CHIPS[topology]}",
                "--config.model.dtype=bfloat16",
                f"--config.dataset.data_dir={_DATA_DIR.value}",
            ],
            cwd=ROOT,
            check=False,  # one that does not fit ends in an error, and has written its plan
        )
        PLANS.mkdir(parents=True, exist_ok=True)
        path_of(run).write_text((Path(workdir) / "plan.json").read_text())


def row(run: tuple[str, str, int]) -> str:
    """A line of the table."""
    plan = json.loads(path_of(run).read_text())
    name = f"`{run[0]}` | {run[1]} | {plan['num_devices']} / {plan['num_hosts']} | {run[2]}"
    if not plan["fits"]:
        return f"| {name} | no: at most {plan['largest_batch_per_device']} a chip | | | | | | |"
    cycles = {part: sum(both.values()) for part, both in plan["estimated_cycles"].items()}
    total = sum(cycles.values())
    return (
        f"| {name} | yes | {plan['argument_bytes'] / 2**20:,.0f} | "
        f"{plan['temporary_bytes'] / 2**20:,.0f} | {plan['flops'] / 1e9:,.0f} | "
        f"{plan['all_reduces']} | {plan['all_reduce_bytes'] / 2**20:.1f} "
        f"({plan['terms_all_reduce_bytes'] / 2**20:.2f}) | "
        f"{total / 1e6:.2f} ({cycles.get('terms', 0) / total:.1%}) |"
    )


def table(runs: list[tuple[str, str, int]]) -> str:
    """The plans that are there, as a Markdown table."""
    head = (
        "| config | slice | devices / hosts | batch a device | fits | arguments, MiB | "
        "temporaries, MiB | operations, G | all-reduces | their MiB (terms') | "
        "estimated cycles, M (terms' share) |"
    )
    rows = [row(run) for run in runs if path_of(run).exists()]
    return "\n".join([head, "|" + " --- |" * 11, *rows])


def main(argv: list[str]) -> None:
    """Compiles the missing plans and writes the tables between the page's markers."""
    del argv
    for i, run in enumerate([] if _TABLES_ONLY.value else SLICES + SHIPPED, start=1):
        print(f"plan {i} of {len(SHIPPED + SLICES)}: {path_of(run).name}", flush=True)
        make(run)
    page = PAGE.read_text()
    for name, runs in (("shipped", SHIPPED), ("slices", SLICES)):
        start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = page.split(start)
        page = f"{before}{start}\n{table(runs)}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    app.run(main)
