"""Checkpoints of a run: the latest ones and the best, written by orbax in the background."""

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from gini_jax.errors import RunError


class Checkpoints:
    """The checkpoints in a folder: the latest three, and the best by validation accuracy.

    States are kept as host arrays, so that they restore on any number of devices.

    Args:
        folder: where they lie; made if missing.
    """

    def __init__(self, folder: Path):
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(3),
                # "rank" is the step where the accuracy rose above all before, else -1.
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: (metrics or {}).get("rank", -1), n=1
                ),
            ]
        )
        self._folder = folder.resolve()
        self._options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self._manager = ocp.CheckpointManager(self._folder, options=self._options)

    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint.

        Args:
            step: the state's step.
            state: a pytree of arrays.
            progress: JSON values that go with it; `best_step == step` marks the best so far.

        Raises:
            RunError: this one, or the one before, could not be written.
        """
        rank = step if progress["best_step"] == step else -1
        with self._written():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.device_get(state)),
                    progress=ocp.args.JsonSave(progress),
                ),
                metrics={"rank": rank},
                force=True,
            )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state, on the host, and the progress of a checkpoint.

        Args:
            step: which one.
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

    def restore_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        One that cannot is named in a warning and deleted once an older one has been read.

        Raises:
            RunError: there are some, and none can be read.
        """
        failed: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, like)
            except Exception as error:  # whatever a damaged file leads to
                failed[step] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                warnings.warn(f"checkpoint {step} is damaged ({failed[step]})", stacklevel=2)
                continue
            if failed:
                self._forget(list(failed))
            return restored
        if failed:
            tried = "\n".join(f"  step {step}: {reason}" for step, reason in failed.items())
            raise RunError(
                f"no checkpoint in {self._folder} can be read:\n{tried}\n"
                "Delete the folder to begin anew."
            )
        return None

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            RunError: it could not be written.
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

    def _forget(self, steps: list[int]) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                shutil.rmtree(self._folder / str(step), ignore_errors=True)
        self._manager = ocp.CheckpointManager(self._folder, options=self._options)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turns whatever goes wrong in writing into one error that tells path and space."""
        try:
            yield
        except Exception as error:
            free = shutil.disk_usage(self._folder).free
            raise RunError(
                f"a checkpoint could not be written to {self._folder}: {error}\n"
                f"{free / 2**20:,.0f} MiB are free there. Older checkpoints are left as they are; "
                "make room and run the same command again."
            ) from error
