"""Checkpoints of a run: the latest ones and the best, written by orbax in the background."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy


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
                preservation_policy.BestN(get_metric_fn=lambda metrics: metrics["rank"], n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            folder.resolve(), options=ocp.CheckpointManagerOptions(preservation_policy=policy)
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint.

        Args:
            step: the state's step.
            state: a pytree of arrays.
            progress: JSON values that go with it; `best_step == step` marks the best so far.
        """
        rank = step if progress["best_step"] == step else -1
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

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
