"""Checkpoints of a run: the latest ones and the best, written by orbax in the background."""

import contextlib
import copy
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gini_jax.errors import RunError
from gini_jax.storage import is_remote, not_written, refuse_patterns


class _Manager(ocp.CheckpointManager):
    """Leaves signals to `Interrupts`, whose count of jax's sync points decides where to stop."""

    def reached_preemption(self, step: int) -> bool:
        """Always returns False."""
        del step
        return False


# orbax numbers what it writes per process: only one checkpoint is written at a time.
_lock, _managers = threading.Lock(), weakref.WeakSet[_Manager]()


class Checkpoints:
    """The checkpoints in a folder.

    Keeps the latest three and, for each, the best one known when it was saved. So whichever
    checkpoint a run resumes from, the best one up to then still exists. States are stored as host
    arrays, so they can be restored on any number of devices.

    Args:
        folder: where they are stored; created if missing.
    """

    def __init__(self, folder: Path):
        refuse_patterns(folder)
        self._folder = epath.Path(folder if is_remote(folder) else folder.resolve())
        self._best_of: dict[int, int] = {}  # step -> the best step when it was saved
        self._open()
        for step in self.steps():
            with contextlib.suppress(Exception):  # damage is reported when it is restored
                args = ocp.args.Composite(progress=ocp.args.JsonRestore())
                progress = self._manager.restore(step, args=args).progress
                self._best_of[step] = progress["best_step"]

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(preservation_policy=self)
        self._manager = _Manager(self._folder, options=options)
        _managers.add(self._manager)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells orbax which checkpoints to keep."""
        del context
        latest = [info.step for info in checkpoints][-3:]
        kept = {*latest, *(self._best_of.get(step, step) for step in latest)}
        return [info.step in kept for info in checkpoints]

    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint.

        Args:
            step: the state's step.
            state: a pytree of arrays.
            progress: JSON values saved with it; `best_step` is the step of the best one so far.

        Raises:
            RunError: this checkpoint or the previous one could not be written.
        """
        self._best_of[step] = progress["best_step"]
        with self._written(), _lock:
            while any(x.is_saving_in_progress() for x in _managers if x is not self._manager):
                time.sleep(0.01)  # of runs in other threads
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.device_get(state)),
                    # a copy, because it is written while the run continues
                    progress=ocp.args.JsonSave(copy.deepcopy(progress)),
                ),
                force=True,
            )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state, on the host, and the progress of a checkpoint.

        Args:
            step: the checkpoint's step.
            like: a state of the same structure and shapes.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.device_get(like)),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored.state, restored.progress

    def best_step(self) -> int:
        """The best step that the newest checkpoint records; before any validation, the newest step.

        Raises:
            RunError: there is no checkpoint, or the newest cannot be read.
        """
        steps = self.steps()
        if not steps:
            raise RunError(f"{self._folder} holds no checkpoint; train first")
        if steps[-1] not in self._best_of:
            raise RunError(
                f"checkpoint {steps[-1]} in {self._folder} is damaged; run the training command "
                "again, which resumes from an older checkpoint"
            )
        return self._best_of[steps[-1]] or steps[-1]

    def variables(self, step: int) -> dict[str, Any]:
        """The evaluated variables of a checkpoint, on the host, as nested dictionaries.

        They are parameters and batch statistics, or their moving average if the run keeps one.

        Raises:
            RunError: there is no such checkpoint, or it cannot be read.
        """
        if step not in self.steps():
            raise RunError(
                f"{self._folder} holds no checkpoint of step {step}; give one of {self.steps()}"
            )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore())
            state = self._manager.restore(step, args=args).state
        except Exception as error:
            raise RunError(
                f"checkpoint {step} in {self._folder} cannot be read "
                f"({str(error).splitlines()[0][:200]}); restore it from a backup, or delete the "
                "folder and train again"
            ) from error
        kept = state.get("average") or state
        found = {"params": kept["params"], "batch_stats": kept.get("batch_stats") or {}}
        found = jax.tree.map(np.asarray, found)
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(found)):
            raise RunError(
                f"the weights in checkpoint {step} of {self._folder} are not finite, so they "
                f"predict nothing; give an earlier --step, one of {self.steps()}, or train again "
                "with a lower learning rate"
            )
        return found

    def restore_newest(self, like: Callable[[], Any]) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        A checkpoint that cannot be read is named in a warning, and moved aside once an older one
        has been read.

        Args:
            like: returns a state of the same shapes; called only if there is a checkpoint.

        Raises:
            RunError: there are checkpoints, but none can be read; or the processes of the run do
                not all find the same one.
        """
        failed: dict[int, str] = {}
        found = None
        for step in reversed(self.steps()):
            try:
                found = step, self.restore(step, like())
                break
            except Exception as error:  # a damaged file can raise anything
                failed[step] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                warnings.warn(f"checkpoint {step} is damaged ({failed[step]})", stacklevel=2)
        steps = np.unique(multihost_utils.process_allgather(np.array(found[0] if found else -1)))
        if steps.size > 1:
            raise RunError(
                f"the newest readable checkpoint differs between processes: {steps.tolist()} (-1: "
                f"none); all of them must see the same folder {self._folder}"
            )
        if failed and not found:
            tried = "\n".join(f"  step {step}: {reason}" for step, reason in failed.items())
            raise RunError(
                f"no checkpoint in {self._folder} can be read:\n{tried}\n"
                "Resume with the version of gini_jax that wrote them, restore one from a backup, "
                "or delete the folder to start over."
            )
        if failed:
            self._put_aside(list(failed))
        return found[1] if found else None

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            RunError: a checkpoint could not be written.
        """
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            RunError: it could not be written.
        """
        with self._written():
            self._manager.wait_until_finished()

    def _put_aside(self, steps: list[int]) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                aside = self._folder.parent / f"damaged-checkpoint-{step}"
                if aside.exists():
                    aside.rmtree()
                (self._folder / str(step)).rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._open()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turns any write failure into one error that names the path and the free space."""
        try:
            yield
        except Exception as error:
            raise not_written(self._folder, error) from error
