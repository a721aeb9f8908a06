"""The only file that maps over devices, along one axis: the batch's.

Arrays that are the same on all devices (state, data set) are replicated and passed with
`in_axes=None`. Arrays that differ (a batch, the order of examples) have a leading axis of local
devices.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import jax
import jaxlib.version
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from gini_jax.errors import InputError
from gini_jax.platform import tracing_for

AXIS = "batch"
MOST_MAPPED = 30  # mapped functions, some ten runs, before jax forgets what it has compiled
# On CPUs, jaxlib 0.10 hands convolutions and products to its library YNN, which is slower than the
# compiler's own way (benchmarks/convolutions.py); reductions are faster there.
YNN_OPTION = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def cpu_options() -> dict[str, str]:
    """Options of the compiler for a program on CPUs; {} on other devices, or if the user set them.

    Examples:
        >>> isinstance(cpu_options(), dict)
        True
    """
    return _unset_option() if jax.default_backend() == "cpu" else {}


def _unset_option() -> dict[str, str]:
    """`YNN_OPTION`, unless the user has set it or this jaxlib does not know it.

    An option that jaxlib does not know would end the process.
    """
    known = jaxlib.version.__version_info__[:2] == (0, 10)
    given = any(option in os.environ.get("XLA_FLAGS", "") for option in YNN_OPTION)
    return YNN_OPTION if known and not given else {}


def prepare_cpu() -> None:
    """Applies settings for CPUs, simulated devices included; to be called before jax starts.

    A collective blocks one thread per simulated device until all devices have arrived. With few
    cores, no thread would be left for the last device. So only one step runs at a time, and there
    are enough threads. `YNN_OPTION` goes into `XLA_FLAGS`, because pmap takes no options; what the
    user set there stays.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    for option, value in _unset_option().items():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{option}={value}".strip()
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("NPROC", "64")


_users, _kept, _lock = 0, dict[str, Any](), threading.RLock()
_mapped = itertools.count(1)
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_cpu_enable_async_dispatch",
)


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """A context with `prepare_cpu`, after which jax's settings and the environment are as before.

    Several threads may be in it at once; the last one to leave restores them.
    """
    global _users
    with _lock:
        if not _users:
            _kept.update({name: jax.config.values[name] for name in _SETTINGS})
            _kept.update({name: os.environ.get(name) for name in ("XLA_FLAGS", "NPROC")})
        _users += 1
        prepare_cpu()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name in _SETTINGS:
                    jax.config.update(name, _kept[name])
                for name in ("XLA_FLAGS", "NPROC"):
                    os.environ.pop(name, None)
                    if _kept[name] is not None:
                        os.environ[name] = _kept[name]
                compilation_cache.reset_cache()  # which stays open in its folder otherwise


def connect(
    address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects the processes of one run; call it before anything else in jax.

    If a process dies, the others end within a minute instead of waiting for it.

    Args:
        address: `HOST:PORT` of process 0; None if the platform provides all three.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.

    Raises:
        InputError: one of the three is missing, or the other processes could not be reached.
    """
    given = {"coordinator_address": address, "num_processes": num_processes}
    given["process_id"] = process_id
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise InputError(
            f"{', '.join(missing)} is missing; give all of --coordinator_address, --num_processes "
            "and --process_id, or --distributed alone where the platform provides them"
        )
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=20,
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"could not join the other processes ({str(error).splitlines()[0]}); all must be "
            "started within 5 minutes, with the same --coordinator_address"
        ) from error


_Program = TypeVar("_Program")
_shared: ContextVar[dict[Hashable, Any] | None] = ContextVar("_shared", default=None)


@contextlib.contextmanager
def shared_programs(held: dict[Hashable, Any]) -> Iterator[None]:
    """Inside, runs trace and compile once what `program` makes; in this thread.

    Args:
        held: the programs of runs that differ in nothing but their seed; it is filled.
    """
    token = _shared.set(held)
    try:
        yield
    finally:
        _shared.reset(token)


def program(key: Hashable, make: Callable[[], _Program]) -> _Program:
    """What `make` returns; inside `shared_programs`, the first one for each key.

    Args:
        key: what sets a run's programs apart from each other.
        make: returns a function that jax compiles when it is first called.

    Examples:
        >>> with shared_programs({}):
        ...     first, second = (program("step", lambda: object()) for _ in range(2))
        >>> first is second, program("step", lambda: object()) is first
        (True, False)
    """
    held = _shared.get()
    if held is None:
        return make()
    if key not in held:
        held[key] = make()
    return held[key]  # type: ignore[no-any-return]


def num_devices(devices: Sequence[jax.Device] | None = None) -> int:
    """The number of devices that a global batch is divided over: those given, or all."""
    return len(devices) if devices is not None else jax.device_count()


def map_over_devices(
    step: Callable[..., Any],
    devices: Sequence[jax.Device] | None = None,
    *,
    in_axes: tuple[int | None, ...],
    donate: bool = True,
) -> Callable[..., Any]:
    """Maps a step over the devices along the axis "batch".

    Args:
        step: the function; its results are the same on all devices.
        devices: the devices, which need not be present on this machine; all by default.
        in_axes: the mapped axis of each argument, or None if all devices get the same value.
        donate: whether the first argument's memory may be used for the result.

    Returns:
        The mapped function; its results are replicated.
    """

    @wraps(step)
    def traced(*arguments: Any) -> Any:
        with tracing_for(devices[0].platform if devices else None):
            return step(*arguments)

    mapped = jax.pmap(
        traced,
        axis_name=AXIS,
        devices=devices,
        in_axes=in_axes,
        out_axes=None,
        donate_argnums=0 if donate else (),
    )

    @wraps(mapped)
    def in_turn(*arguments: Any) -> Any:
        with _lock:  # devices that got the programs of two threads in different orders would block
            return mapped(*arguments)

    in_turn.lower = mapped.lower  # type: ignore[attr-defined]
    # jax keeps what pmap has compiled for as long as the process lives: after some hundred runs the
    # process would have used up its memory maps, and crash.
    if next(_mapped) % MOST_MAPPED == 0:
        jax.clear_caches()
    return in_turn


def wait_for_all(what: str) -> None:
    """Waits until all processes have reached this call, however long each of them takes.

    A collective would time out after half a minute, but one machine may have to decode a set that
    another has already decoded.
    """
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=what, timeout_ms=24 * 3600 * 1000)


def replicate(
    tree: Any, devices: Sequence[jax.Device] | None = None, *, donated: bool = True
) -> Any:
    """Puts a pytree of arrays on each of this process's devices.

    Args:
        tree: arrays.
        devices: all by default.
        donated: whether the result is donated to a step. Then the tree is copied, to protect it.
    """
    sharding = NamedSharding(_local_mesh(devices), PartitionSpec())
    return jax.device_put(jax.tree.map(np.array, tree) if donated else tree, sharding)


def sharding_over_devices(devices: Sequence[jax.Device] | None = None) -> NamedSharding:
    """The sharding of an array whose leading axis is this process's devices."""
    return NamedSharding(_local_mesh(devices), PartitionSpec(AXIS))


def _local_mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    local = jax.local_devices() if devices is None else list(devices)
    return Mesh(np.array(local), (AXIS,))


def shard(batch: Any, devices: int) -> Any:
    """Divides a global batch and keeps this process's part.

    Args:
        batch: a pytree of `[N, ...]` arrays.
        devices: all devices, those of other processes included; their number must divide `N`.

    Returns:
        The same pytree of `[local devices, N / devices, ...]`.

    Examples:
        >>> shard({"label": np.arange(4)}, devices=1)["label"].tolist()
        [[0, 1, 2, 3]]
    """
    local = devices // jax.process_count()
    first = jax.process_index() * local

    def part(array: Any) -> Any:
        split = array.reshape((devices, array.shape[0] // devices, *array.shape[1:]))
        return split[first : first + local]

    return jax.tree.map(part, batch)


def order_by_device(
    order: Int[np.ndarray, "steps batch"], devices: int
) -> Int[np.ndarray, "local steps n"]:
    """An epoch's order by device: `[steps, batch]` to `[local devices, steps, batch / devices]`.

    Examples:
        >>> order_by_device(np.arange(6).reshape(3, 2), devices=1).tolist()
        [[[0, 1], [2, 3], [4, 5]]]
    """
    return np.ascontiguousarray(np.swapaxes(shard(order.T, devices), 1, 2))
