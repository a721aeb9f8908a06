"""How the members of a sweep run: one after the other, side by side, or as jobs of a cluster.

A new executor is one file and one line in `EXECUTORS`; a plugin is such a module. The file has

- `FLAGS`: its own flags, each with a default, a type and a meaning, like those of a mode;
- `run(members, workdir, starting, **values of its flags)`: it gets the unfinished members, and
  yields each one as it ends, with the error that ended it, if any. It yields `Busy` for a member
  that another process or job has yet to finish; the text says where. Whenever it starts something,
  it calls `starting` with a phrase, such as `now ce-seed0`.

If it has `check(workdir, **values)`, this is called first, before anything is written.

As a keyword, a flag has underscores for dots: `--slurm.time` is `slurm_time`.
"""

from typing import Any

from gini_jax.config.registry import Registry
from gini_jax.errors import InputError, unknown_name
from gini_jax.modes.executors import inline, local, slurm

EXECUTORS = Registry(
    "executor",
    {
        "inline": inline,
        "local": local,
        "slurm": slurm,
    },
    lambda part: hasattr(part, "run") and hasattr(part, "FLAGS"),
    "a module with FLAGS and run",
)
FLAGS = {name: row for executor in EXECUTORS.values() for name, row in executor.FLAGS.items()}


def chosen(executor: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An executor, and the values of its flags.

    Args:
        executor: its name.
        settings: values of executors' flags, by keyword; what is left out has its default.

    Raises:
        InputError: a name is unknown, or a setting of another executor was given.

    Examples:
        >>> chosen("local", {"parallel": 2})[1]
        {'parallel': 2}
    """
    found = EXECUTORS.find(executor)
    rows = {name.replace(".", "_"): (name, row) for name, row in FLAGS.items()}
    own = {name.replace(".", "_"): row[0] for name, row in found.FLAGS.items()}
    for keyword, value in settings.items():
        if keyword not in rows:
            raise unknown_name("setting of a sweep", keyword, rows)
        if keyword in own:
            own[keyword] = value
        elif value != rows[keyword][1][0]:
            flag = rows[keyword][0]
            of = next(name for name, module in EXECUTORS.items() if flag in module.FLAGS)
            raise InputError(
                f"--{flag}={value} has no effect with --executor={executor}; add --executor={of}, "
                "or leave it out"
            )
    return found, own
