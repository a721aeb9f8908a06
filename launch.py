"""Command line of gini_jax; alone it trains the default, configs/digits.py. See the README."""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gini_jax.errors import InputError, RunError, unknown_name
from gini_jax.workdir import saved_config

FLAGS = flags.FLAGS


def _parse(argv: list[str]) -> list[str]:
    """Reads the command line and the config; whatever is wrong there is the user's to mend."""
    flags.DEFINE_string("mode", "train", "train, eval, summary, preview or plan.")
    flags.DEFINE_string("topology", None, "TPU slice that --mode=plan compiles for: v5e:2x4, ...")
    flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME by default.")
    flags.DEFINE_bool("distributed", False, "Several hosts, told by the platform (TPU pod, Slurm).")
    flags.DEFINE_string("coordinator_address", None, "Several processes: HOST:PORT of process 0,")
    flags.DEFINE_integer("num_processes", None, "... how many there are,")
    flags.DEFINE_integer("process_id", None, "... and which one this is, from 0.")
    try:
        config_flags.DEFINE_config_file("config", "configs/digits.py", "FILE or FILE:OBJECTIVE.")
        rest = FLAGS(argv)
        _ = FLAGS.config.name
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason: object = error
        while isinstance(reason, Exception) and len(reason.args) == 1:
            reason = reason.args[0]
        kind = "unknown setting " if isinstance(error, AttributeError) else ""
        raise InputError(f"{kind}{reason}\nAll settings: gini_jax/config.py") from error
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; settings are --config.KEY=VALUE")
    return rest


def main(argv: list[str]) -> None:
    """Runs the chosen mode."""
    del argv
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # not the libraries' every move
    if FLAGS.topology:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU's compiler alone: no TPU is looked for
        if FLAGS.mode != "plan":
            raise InputError(f"--topology={FLAGS.topology} needs --mode=plan; it trains nothing")
    from gini_jax import parallel, plan, preview, summary, train  # jax starts here

    several = (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    if FLAGS.distributed or any(value is not None for value in several):
        parallel.connect(*several)
    modes = {
        "train": train.train,
        "eval": train.evaluate,
        "summary": lambda config, workdir: summary.summarize(config),
        "preview": preview.preview,
        "plan": lambda config, workdir: plan.plan(config, workdir, FLAGS.topology),
    }
    if FLAGS.mode not in modes:
        raise unknown_name("mode", FLAGS.mode, modes)
    config = FLAGS.config
    workdir = Path(FLAGS.workdir or f"runs/{config.name}")
    if FLAGS.mode != "train" and not FLAGS["config"].present and (workdir / "config.json").exists():
        data_dir = config.dataset.data_dir  # the data may lie elsewhere than in training
        config = saved_config(workdir)
        config.dataset.data_dir = data_dir or config.dataset.data_dir
    modes[FLAGS.mode](config, workdir)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=_parse)
    except (InputError, RunError) as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # and not into jax's exit hook, which waits for other processes
