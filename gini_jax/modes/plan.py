"""Compiles a run's training step for devices that may be absent: memory, traffic, cycles."""

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gini_jax.analysis.program import figures
from gini_jax.data import Dataset, Split, dataset_shapes
from gini_jax.data.loader import feed_shapes
from gini_jax.errors import InputError
from gini_jax.storage import json_text, write
from gini_jax.training.experiment import build_experiment, check_before_data, with_batch
from gini_jax.training.frozen import as_seen
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step
from gini_jax.training.workdir import make_workdir

EXAMPLES = "v4:2x2x2, v5e:2x4, v5e:16x16, v5p:2x2x2, v6e:2x4"
FLAGS: dict[str, Any] = {
    "batches": (None, str, "Batch sizes per device, such as 64,128,256, to compare in one table."),
    "topology": (None, str, "TPU slice to compile for, such as v5e:4x4; by default this machine."),
}


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice that need not be present.

    Args:
        topology: generation and shape, such as `v5e:4x4`.

    Raises:
        InputError: libtpu is missing, or the topology is unknown or malformed.
    """
    from jax.experimental import topologies

    # Do not look up a TPU machine's metadata, and take no lock, because no TPU is used.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Otherwise libtpu would query these on every start, and complain.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={topology} needs the TPU compiler, libtpu, which runs on any Linux "
            "machine: pip install -e '.[tpu]'"
        )
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"unknown topology {topology!r} ({str(error).splitlines()[0]}); give a TPU generation "
            f"and a shape, such as {EXAMPLES}"
        ) from error
    return list(description.devices)


def main(
    config: ConfigDict, workdir: Path, *, topology: str | None = None, batches: str | None = None
) -> dict[str, Any]:
    """Compiles the training step of a config, prints its figures and writes plan.json.

    It compiles one step, whatever `config.steps_per_call` says, fed from the device unless
    `config.dataset.feed` is `stream`. Nothing runs, and the data set is not decoded: only its sizes
    are read.

    Args:
        config: the settings of a run.
        workdir: where plan.json goes.
        topology: a TPU slice, such as `v5e:4x4`; this machine's devices by default.

    Returns:
        The contents of plan.json.

    Raises:
        InputError: bad input, or the step does not fit into the devices' memory. In that case too,
            plan.json is written, with the compiler's reason and the largest batch that fits.
    """
    if topology:
        jax.config.update("jax_platforms", "cpu")  # only the compiler is needed, not a TPU
    devices = topology_devices(topology) if topology else jax.devices()
    if batches:
        return compare_batches(config, workdir, devices, topology, batches)
    check_before_data(config, devices)
    make_workdir(workdir)
    shapes = dataset_shapes(config.dataset)
    config = with_batch(config, shapes.splits["train"].labels.shape[0], shapes.num_classes)
    batch = config.batch_size // len(devices)
    result: dict[str, Any] = {
        "topology": topology or f"this machine: {len(devices)} x {devices[0].platform}",
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_hosts": len({device.process_index for device in devices}),
        "batch_per_device": batch,
    }
    print(f"compiling for {len(devices)} x {devices[0].device_kind}, {batch} images each ...")
    start = time.perf_counter()
    compiled, reason = compile_step(config, shapes, devices)
    result["fits"] = compiled is not None
    if compiled is not None:
        result |= figures(compiled)
    result["compile_seconds"] = round(time.perf_counter() - start, 1)
    if compiled is None:
        result["reason"] = reason
        result["largest_batch_per_device"] = _largest_batch(config, shapes, devices)
    path = workdir / "plan.json"
    write(path, json_text(result))
    if compiled is None:
        raise _does_not_fit(config, result, path)
    print(table(result))
    print(f"\nwritten to {path}")
    return result


def _does_not_fit(config: ConfigDict, result: dict[str, Any], path: Path) -> InputError:
    fitting = result["largest_batch_per_device"]
    batch_size = fitting * result["num_devices"]
    fix = f"set --config.batch_size={batch_size}" if fitting else "shrink the model"
    return InputError(
        f"batch_size={config.batch_size}, {result['batch_per_device']} per device, does not fit: "
        f"{result['reason']}\nThe largest batch that fits is {fitting} per device: {fix}, or try "
        "--config.model.remat=True, --config.model.dtype=bfloat16 or --config.dataset.feed="
        f"stream. Written to {path}"
    )


def compare_batches(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device],
    topology: str | None,
    batches: str,
) -> dict[str, Any]:
    """Compiles the step for each batch, prints one table, and writes plan.json.

    Returns:
        What plan.json holds: `topology`, and `batches`, one entry per batch.

    Raises:
        InputError: the batches are not numbers, or the config is wrong.
    """
    sizes = [int(size) for size in batches.split(",") if size.strip().isdigit()]
    if len(sizes) != len(batches.split(",")) or min(sizes, default=0) < 1:
        raise InputError(f"--batches={batches}: give batch sizes per device, such as 64,128,256")
    config = config.copy_and_resolve_references()
    shapes, rows = dataset_shapes(config.dataset), []
    for size in sizes:  # all of them are checked before the first compilation
        config.batch_size = size * len(devices)
        check_before_data(config, devices)
        build_experiment(config, _with_a_batch(shapes, config.batch_size), devices)
    make_workdir(workdir)
    for size in sizes:
        config.batch_size = size * len(devices)
        print(f"compiling for {len(devices)} x {devices[0].device_kind}, {size} images each ...")
        compiled, reason = compile_step(config, shapes, devices)
        row = {"batch_per_device": size, "fits": compiled is not None, "reason": reason}
        rows.append(row | (figures(compiled) if compiled is not None else {}))
    result = {"topology": topology, "device_kind": devices[0].device_kind, "batches": rows}
    path = workdir / "plan.json"
    write(path, json_text(result))
    print(batches_table(rows))
    print(f"\nwritten to {path}")
    return result


def cycles_per_image(row: dict[str, Any]) -> float | None:
    """The compiler's cycle estimate per image on one device; None if it makes none."""
    total = sum(sum(both.values()) for both in row.get("estimated_cycles", {}).values())
    return total / row["batch_per_device"] if total else None


def batches_table(rows: list[dict[str, Any]]) -> str:
    """A table with one row per batch size, and the batch size to choose."""
    lines = ["", f"  {'per device':>10}{'temporaries, MiB':>18}{'cycles per image':>18}"]
    for row in rows:
        if not row["fits"]:
            lines.append(f"  {row['batch_per_device']:10,}  does not fit: {row['reason']}")
            continue
        cycles = cycles_per_image(row)
        shown = f"{cycles:18,.0f}" if cycles else f"{'-':>18}"
        memory = row["temporary_bytes"] / 2**20
        lines.append(f"  {row['batch_per_device']:10,}{memory:18,.1f}{shown}")
    fitting = [row for row in rows if row["fits"] and cycles_per_image(row)]
    if fitting:
        best = min(fitting, key=lambda row: cycles_per_image(row) or 0)
        lines.append(
            f"  fewest estimated cycles per image: {best['batch_per_device']} per device; the "
            "compiler's estimate, without collectives"
        )
    elif not any(row["fits"] for row in rows):
        lines.append(
            "  none fits; try smaller ones, --config.model.remat=True or "
            "--config.model.dtype=bfloat16"
        )
    return "\n".join(lines)


def compile_step(
    config: ConfigDict, shapes: Dataset, devices: Sequence[jax.Device]
) -> tuple[Any | None, str]:
    """The compiled training step; or None and the reason, if it does not fit into memory."""
    config = config.copy_and_resolve_references()
    config.dataset.sampler = "shuffled"  # the step is the same, and any batch may be tried
    shapes = _with_a_batch(shapes, config.batch_size)
    experiment = build_experiment(config, shapes, devices)
    state = jax.eval_shape(lambda: init_state(experiment))
    feed = "stream" if config.dataset.feed == "stream" else "device"
    train = as_seen(experiment, shapes, state.variables).splits["train"]
    arguments = feed_shapes(train, feed, config.batch_size, len(devices))
    lowered = create_step(experiment, devices, feed=feed).lower(state, *arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _memory_reason(str(error))
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    there = _memory_of(devices[0])
    if there is not None and needed > there:
        return None, f"it needs {needed / 2**30:.2f} GiB, the device has {there / 2**30:.2f} GiB"
    return compiled, ""


def _with_a_batch(shapes: Dataset, batch_size: int) -> Dataset:
    """A data set of at least one batch: a plan does not need the images."""
    train = shapes.splits["train"]
    size = max(train.labels.shape[0], batch_size)
    enough = Split(
        jax.ShapeDtypeStruct((size, *train.images.shape[1:]), train.images.dtype),
        jax.ShapeDtypeStruct((size,), train.labels.dtype),
    )
    return replace(shapes, splits=shapes.splits | {"train": enough})


def _memory_of(device: jax.Device) -> int | None:
    """Bytes that jax may use on a device of this machine; None if unknown."""
    if device not in jax.local_devices():
        return None  # not on this machine: its compiler rejects what does not fit
    return (device.memory_stats() or {}).get("bytes_limit")


def _memory_reason(text: str) -> str:
    """The sentence of the compiler's error that states the sizes."""
    for line in text.splitlines():
        if re.search(r"exceeds? |[Uu]sed .* of ", line):
            return line.strip()
    return text.splitlines()[0]


def _largest_batch(config: ConfigDict, shapes: Dataset, devices: Sequence[jax.Device]) -> int:
    """Largest batch per device that fits, by bisection; a multiple of 8 if it is above 8."""
    too_large = config.batch_size // len(devices)
    parts = config.grad_accumulation
    unit = math.lcm(8 if too_large > 8 else 1, parts)
    largest = _bisect(config, shapes, devices, unit, too_large)
    return largest or _bisect(config, shapes, devices, parts, min(unit, too_large))


def _bisect(
    config: ConfigDict, shapes: Dataset, devices: Sequence[jax.Device], unit: int, too_large: int
) -> int:
    """The largest multiple of `unit` below `too_large` that fits; 0 if none does."""
    low, high = 0, math.ceil(too_large / unit)
    config = config.copy_and_resolve_references()
    while high - low > 1:
        middle = (low + high) // 2
        config.batch_size = middle * unit * len(devices)
        fits = compile_step(config, shapes, devices)[0] is not None
        low, high = (middle, high) if fits else (low, middle)
        print(
            f"  {middle * unit} per device {'fits' if fits else 'does not fit'}; "
            f"at most {math.ceil(math.log2(max(high - low, 1)))} more compilations",
            flush=True,
        )
    return low * unit


def table(result: dict[str, Any]) -> str:
    """The plan as a few lines of text."""
    mib = 2**20
    unknown = "; the compiler did not check the memory" if "machine" in result["topology"] else ""
    lines = [
        "",
        f"{result['num_devices']} x {result['device_kind']} on {result['num_hosts']} hosts, "
        f"{result['batch_per_device']} images per device: fits{unknown}",
        f"  arguments      {result['argument_bytes'] / mib:10,.1f} MiB (state, data set, order)",
        f"  temporaries    {result['temporary_bytes'] / mib:10,.1f} MiB",
        f"  operations     {result['flops'] / 1e9:10,.1f} G per step",
        f"  all-reduces    {result['all_reduces']:10,}, {result['all_reduce_bytes'] / mib:,.3f} "
        f"MiB per step, of which {result['terms_all_reduce_bytes'] / mib:,.3f} for the terms",
        f"  compiled in    {result['compile_seconds']:10,.1f} s",
    ]
    cycles = result["estimated_cycles"]
    if not cycles:
        return "\n".join([*lines, "  the compiler for this device does not estimate cycles"])
    total = sum(sum(both.values()) for both in cycles.values())
    lines += ["", f"  {'estimated cycles':24}{'forward':>12}{'backward':>12}{'share':>8}"]
    for part, both in cycles.items():
        share = sum(both.values()) / total
        lines.append(f"  {part:24}{both['forward']:12,}{both['backward']:12,}{share:8.1%}")
    lines.append(f"  {'all':24}{total:24,}")
    lines.append("  the compiler's estimates, without collectives")
    return "\n".join(lines)
