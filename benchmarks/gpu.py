"""On one GPU: the step's speed against PyTorch's, pairs of seeds, and a queue of the full recipe.

    python benchmarks/gpu.py --part=speed --out=results/gpu.json
    python benchmarks/gpu.py --part=seeds --data_dir=DIR --minutes=60 --out=results/gpu.json

`speed`: images/s, and the share of a large bfloat16 product's rate, of a training step in bfloat16:
ResNet-18 on images of 32 pixels and ResNet-50 on 224, gini_jax against PyTorch eager and compiled
(channels last, autocast), in turns.

`seeds`: CIFAR-100, ResNet-18 of width 64. First every arm is tuned with the same number of trials,
on validation accuracy, with one seed that is used for nothing else. Then fresh seeds of all arms,
a seed at a time, until the minutes are over. `--parallel` runs share the GPU.

`queue`: runs of the published recipe, best first; see benchmarks/gpu_queue.py.

What `--out` holds already stays; figures are added. `--small` tries everything on a CPU.
"""

import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import gpu_queue, torch_networks, train_step  # with the flags --rounds and --out

FLAGS = flags.FLAGS
_PART = flags.DEFINE_enum("part", "speed", ["speed", "seeds", "queue"], "What to measure.")
_SMALL = flags.DEFINE_bool("small", False, "Small networks and few images, to try the script.")
_DATA = flags.DEFINE_string("data_dir", "", "seeds, queue: folder of CIFAR-100 in TFDS form.")
_MINUTES = flags.DEFINE_float("minutes", 60.0, "seeds, queue: end after this many minutes.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "seeds: epochs of a run.")
_PARALLEL = flags.DEFINE_integer("parallel", 3, "seeds, queue: runs at a time.")
_SEEDS = flags.DEFINE_integer("seeds", 8, "seeds: at most this many fresh seeds.")
_RUNS = flags.DEFINE_string("workdir", "runs/gpu", "seeds, queue: folder of the runs.")
ROOT = Path(__file__).resolve().parent.parent
TUNED_ON = 100  # the seed of the trials
Job = tuple[str, str, dict[str, Any], int]  # arm, objective, settings, seed

# ---------------------------------------------------------------------------- speed


def cases() -> dict[str, tuple[str, dict[str, Any], int, int]]:
    """Name -> network, its settings, batch, image size."""
    if _SMALL.value:
        small = {"width": 8}
        return {
            "resnet18_32": ("resnet18", small, 16, 32),
            "resnet50_224": ("resnet50", small | {"stem": "imagenet"}, 4, 64),
        }
    return {
        "resnet18_32": ("resnet18", {}, 512, 32),
        "resnet50_224": ("resnet50", {"stem": "imagenet"}, 256, 224),
    }


def speed() -> list[dict[str, Any]]:
    """A row per case: medians and quartiles of images/s, and the share of the peak."""
    import jax

    from gini_jax.devices import prepare_cpu

    prepare_cpu()
    steps = 2 if _SMALL.value else 20
    peak, rows = peak_flops(), []
    for case, (network, settings, batch, size) in cases().items():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
        labels = rng.integers(0, 100, batch).astype(np.int32)
        run = train_step.experiment_of(network, settings | {"dtype": "bfloat16"}, images, labels)
        ways: dict[str, Callable[[], None]] = {"gini_jax": train_step.jax_step(*run)}
        theirs = torch_networks.gpu_steps(network, settings, images, labels, 100)
        seconds: dict[str, list[float]] = {}
        ours = several(ways["gini_jax"], steps)
        for round_ in range(FLAGS.rounds + 1):
            for way, call in {"gini_jax": ours, **several_of(theirs, steps)}.items():
                start = time.perf_counter()
                call()
                if round_:  # the first warms up
                    seconds.setdefault(way, []).append((time.perf_counter() - start) / steps)
        flops = 3 * batch * forward_flops(run[0])
        row: dict[str, Any] = {"case": case, "batch": batch, "image_size": size}
        row |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        row |= {"torch": torch_networks.version(), "date": str(datetime.date.today())}
        row |= {"peak_tflops": round(peak / 1e12, 1), "rounds": FLAGS.rounds, **settings}
        for way, times in seconds.items():
            low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
            row[way] = {
                "images_per_second": [round(batch / t, 1) for t in (high, middle, low)],
                "share_of_peak": round(flops / middle / peak, 3),
            }
            print(f"{case:14} {way:16} {batch / middle:10,.0f} images/s, {row[way]}", flush=True)
        rows.append(row)
    return rows


def forward_flops(experiment: Any) -> float:
    """Operations of a forward pass for one image, as XLA counts them; a step takes three times."""
    import jax
    import jax.numpy as jnp

    model, size = experiment.model.clone(axis_name=None), experiment.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with jax.default_device(jax.devices("cpu")[0]):  # a GPU's compiler does not count
        lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)[0]).lower(variables, images)
        return float((lowered.cost_analysis() or lowered.compile().cost_analysis())["flops"])


def several(step: Callable[[], None], count: int) -> Callable[[], None]:
    """`count` steps; each waits for its metrics, as a loop that logs every step would."""

    def call() -> None:
        for _ in range(count):
            step()

    return call


def several_of(steps: dict[str, Callable[[], None]], count: int) -> dict[str, Callable[[], None]]:
    """`several` of each."""
    return {way: several(step, count) for way, step in steps.items()}


def peak_flops(rounds: int = 10) -> float:
    """Operations per second of a large bfloat16 product of random numbers, in the best round."""
    import jax
    import jax.numpy as jnp

    size = 512 if _SMALL.value else 8192
    a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


# ---------------------------------------------------------------------------- seeds

DECAYS = [{"optimizer.weight_decay": 5e-4}, {"optimizer.weight_decay": 1e-3}]
FASTER = {"optimizer.weight_decay": 5e-4, "schedule.learning_rate": 0.2}
OURS = {"loss.terms.kl.target": "present", "loss.start_epoch": 2, "loss.terms.renyi": 0.1}
# Arm -> objective and its three trials.
ARMS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "ce": ("ce", [*DECAYS, FASTER]),
    "ce, label smoothing": ("ce", [x | {"loss.label_smoothing": 0.1} for x in (*DECAYS, FASTER)]),
    "renyi_kl, present": (
        "renyi_kl",
        [*(x | OURS for x in DECAYS), DECAYS[0] | OURS | {"loss.terms.renyi": 0.3}],
    ),
}


def seeds() -> list[dict[str, Any]]:
    """A row per run: its arm, its settings, whether it was a trial, and its result.json."""
    until = time.monotonic() + 60 * _MINUTES.value
    trials = [
        (arm, objective, settings, TUNED_ON)
        for arm, (objective, tried) in ARMS.items()
        for settings in tried
    ]
    rows = [row | {"trial": True} for row in run_all(trials, until)]
    best = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if len(own) < len(ARMS[arm][1]):
            print(f"{arm}: not all trials ran, so no seeds are run")
            return rows
        best[arm] = max(own, key=lambda row: row["result"]["val_accuracy"])["settings"]
        print(f"{arm}: best by validation accuracy: {best[arm]}", flush=True)
    fresh = [(a, ARMS[a][0], best[a], seed) for seed in range(_SEEDS.value) for a in ARMS]
    return rows + [row | {"trial": False} for row in run_all(fresh, until)]


def run_all(jobs: list[Job], until: float) -> list[dict[str, Any]]:
    """Runs `--parallel` jobs at a time; returns those that finished."""
    rows = []
    commands = [(job, command_of(job)) for job in jobs]
    for job, result in gpu_queue.ended(commands, folder_of, _PARALLEL.value, until):
        arm, objective, settings, seed = job
        row = {"arm": arm, "objective": objective, "settings": settings, "result": result}
        rows.append(row)
        with Path(FLAGS.out).with_suffix(".partial.jsonl").open("a") as file:  # if it is killed
            file.write(json.dumps(row) + "\n")
        print(
            f"{time.strftime('%H:%M:%S')} {arm}, seed {seed}, {settings}: validation "
            f"{result['val_accuracy']:.4f}, test {result['test_accuracy']:.4f}",
            flush=True,
        )
    return rows


def folder_of(job: Job) -> Path:
    """The folder of a job's run."""
    _, objective, settings, seed = job
    name = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    return Path(_RUNS.value).resolve() / f"{objective}-{name}-seed{seed}"


def command_of(job: Job) -> list[str]:
    """The command that starts, or resumes, a job's run."""
    _, objective, settings, seed = job
    epochs = _EPOCHS.value
    falls = tuple(round(epochs * share) for share in (0.24, 0.48, 0.64, 0.8))
    given: dict[str, Any] = {
        "dataset.data_dir": _DATA.value,
        "num_epochs": epochs,
        "schedule.boundaries": falls,
        "model.dtype": "bfloat16",
        "eval_every_epochs": 5,
        "steps_per_call": 10,
        "checkpoint_every_epochs": epochs,
        "report": False,
        "loggers": "('jsonl',)",
        "evals": "('calibration','clusters')",
        "seed": seed,
        **settings,
    }
    if _SMALL.value:
        given |= {"model.width": 8, "model.dtype": "float32", "dataset.train_size": 1000}
        given |= {"schedule.boundaries": "()", "dataset.val_size": 500, "steps_per_call": 1}
    command = [sys.executable, "launch.py", f"--config=cifar100_resnet18:{objective}"]
    return [
        *command,
        f"--workdir={folder_of(job)}",
        *(f"--config.{k}={v}" for k, v in given.items()),
    ]


def main(argv: list[str]) -> None:
    """Measures, and adds the figures to the file."""
    del argv
    if not FLAGS.out:
        raise SystemExit("--out is missing; give the JSON file for the figures")
    if _PART.value == "queue":
        own = (_DATA.value, _MINUTES.value, _PARALLEL.value, _SMALL.value)
        count = gpu_queue.work_off(Path(FLAGS.out), Path(_RUNS.value), *own)
        print(f"{count} rows are in {FLAGS.out}")
        return
    rows = speed() if _PART.value == "speed" else seeds()
    path = Path(FLAGS.out)
    report = json.loads(path.read_text()) if path.exists() else {"speed": [], "seeds": []}
    report[_PART.value] += rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    app.run(main)
