"""The command line: reads flags and config, and calls one module of `gini_jax.modes`."""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from gini_jax.errors import InputError, RunError, Stopped, unknown_name
from gini_jax.help import MODES, flags_of, usage, used_settings
from gini_jax.storage import reading, run_path, storage_path

FLAGS = flags.FLAGS
_CONFIG = re.compile(r"--?(no)?config(?:\.([^=]+))?(?:=(.*))?", re.S)
_HELP = re.compile(r"--?h(?:elp(full)?)?(?:=(.*))?")
_MODE = re.compile(r"--?mode(?:=(.*))?", re.S)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; an expected error is printed in one message and ends the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        with contextlib.suppress(OSError):  # a stream that replaced stdout may refuse
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(list(sys.argv if argv is None else argv))
        sys.stdout.flush()
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", flush=True)
        sys.exit(130)
    except BrokenPipeError:  # as with `| head`: the reader stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (InputError, RunError) as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # skips jax's exit hook, which would wait for other processes


def run(argv: list[str]) -> Any:
    """Reads a command line and runs its mode.

    Returns:
        What the mode's `main` returns; None after `--help`.

    Raises:
        InputError: the command line or the config is wrong.
        RunError: the run could not continue.
        Stopped: a signal stopped the run.
    """
    for argument in argv[1:]:
        if match := _HELP.fullmatch(argument):
            print(usage("all" if match[1] else match[2] or ""))
            return None
    file, given, rest = _split(argv)
    mode = _mode_of(rest)
    own_flags = flags_of(mode)
    _parse(rest, own_flags)
    import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
    from gini_jax.config.change import changed
    from gini_jax.config.files import read_config, shipped_configs
    from gini_jax.config.values import written
    from gini_jax.training.checks import check_name

    config = read_config(str(shipped_configs()["digits"]) if file is None else file)
    trains = mode in ("train", "sweep")
    if trains:
        changed(config, given, written)
    _start_jax()
    name = given.get("name", config.name)
    check_name(name)
    default = f"runs/{name or 'run'}" + ("_sweep" if mode == "sweep" else "")
    folders = _workdirs(FLAGS.workdir, "others" in own_flags) or [default]
    workdir, *others = [run_path("--workdir", folder) for folder in folders]
    if not trains:
        config = _config_for(mode, workdir, config, file, given)
    storage_path("dataset.data_dir", config.dataset.data_dir)
    if not config.model.init.startswith("pip:"):
        run_path("model.init", config.model.init)
    values = _values_of(own_flags, file, given, rest)
    if "others" in own_flags:
        values["others"] = others
    if values.get("init_from") and "model.init" in given:
        raise InputError(
            f"--init_from={values['init_from']} and --config.model.init={given['model.init']} both "
            "name weights to start from; give one of them"
        )
    module = importlib.import_module(f"gini_jax.modes.{mode}")
    with reading(workdir):
        try:
            return module.main(config, workdir, **values)
        except InputError as error:
            from gini_jax.modes.repair import repaired

            varied = any(argument.lstrip("-").startswith("vary") for argument in argv)
            if not trains or varied or not (command := repaired(argv, config, error)):
                raise
            raise InputError(f"{error}\nThe whole command with that:\n    {command}") from error


def _values_of(
    own_flags: dict[str, Any], file: str | None, given: dict[str, str], rest: list[str]
) -> dict[str, Any]:
    """By keyword, the values of a mode's own flags, and the command if the mode wants it."""
    own = [name for name, (_, _, text) in own_flags.items() if text]
    values = {name.replace(".", "_"): FLAGS[name].value for name in own}
    if "command" in own_flags:
        from gini_jax.modes.members import without

        switches = [f"no{name}" for name in own if own_flags[name][1] is bool]
        shared = [f"--config={file}"] if file else []
        shared += [f"--config.{path}={text}" for path, text in given.items()]
        values["command"] = [*shared, *without(rest[1:], ("mode", "workdir", *own, *switches))]
    return values


def _start_jax() -> None:
    """Imports jax, and connects to the other processes, if there are any."""
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # hides the libraries' info messages
    from gini_jax import devices

    devices.prepare_cpu()
    several = (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    if FLAGS.distributed or any(value is not None for value in several):
        devices.connect(*several)


def _config_for(
    mode: str,
    workdir: Path,
    config: ConfigDict,
    file: str | None,
    given: dict[str, str],
) -> ConfigDict:
    """The config of a mode that does not train: that of the run in the workdir, if there is one."""
    from gini_jax.config.change import changed
    from gini_jax.config.values import written
    from gini_jax.training.workdir import saved_config

    uses = used_settings(mode)
    if uses is not None:
        _check_useful(given, mode, uses)
    with reading(workdir):
        has_run = (workdir / "config.json").exists()
        if uses is not None and not workdir.is_dir():  # before the mode is imported
            raise InputError(f"{str(workdir)!r} is no folder; give --workdir=DIR of a finished run")
    if not has_run or (uses is None and file is not None):
        return changed(config, given, written)
    saved = changed(saved_config(workdir), given, written)
    if file:
        _check_same_network_and_data(config, saved, workdir, {*given, *(uses or ())})
    return saved


def _split(argv: Sequence[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """The config file, if one is given, the settings as texts by path, and all other arguments.

    `--config.SETTING` alone is a switch, true, and `--noconfig.SETTING` false.

    Raises:
        InputError: two config files are given, or none after `--config`.

    Examples:
        >>> _split(["launch.py", "--config", "digits:ce", "--config.seed=1", "--mode=eval"])
        ('digits:ce', {'seed': '1'}, ['launch.py', '--mode=eval'])
    """
    files: list[str] = []
    given: dict[str, str] = {}
    rest, waiting = argv[:1], list(argv[1:])
    while waiting:
        argument = waiting.pop(0)
        if not (match := _CONFIG.fullmatch(argument)):
            rest = [*rest, argument]
            continue
        off, path, text = match.groups()
        if text is None and not off and waiting and not waiting[0].startswith("-"):
            text = waiting.pop(0)
        if path is not None:
            given[path] = text if text is not None else ("false" if off else "true")
        elif text is None or off:
            raise InputError(f"{argument} names no file: --config=FILE, such as --config=digits")
        else:
            files.append(text)
    if len(files) > 1:
        raise InputError(f"--config={' and --config='.join(files)}: give one config")
    return files[-1] if files else None, given, list(rest)


def _mode_of(argv: Sequence[str]) -> str:
    """The mode, which has flags of its own."""
    modes, following = [], [*argv[1:], "-"]
    for argument, following_one in zip(argv[1:], following[1:], strict=True):
        if match := _MODE.fullmatch(argument):
            modes.append(match[1] if match[1] is not None else following_one)
    if len(modes) > 1:
        raise InputError(f"--mode is given {len(modes)} times ({', '.join(modes)}); give it once")
    mode = modes[0] if modes else "train"
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    return mode


def _parse(argv: list[str], own_flags: dict[str, Any]) -> None:
    """Reads all flags but those of the config."""
    for name in ("init_from", "seeds", "objectives", "benches", "images", "format"):
        if any(re.fullmatch(f"--?{name}=", argument) for argument in argv):
            raise InputError(f"--{name}= is empty; give a value, or leave it out")
    _define_flags(own_flags)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}\nAll flags and settings: --help=all") from error
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; settings are --config.KEY=VALUE")


def _define_flags(own_flags: dict[str, Any]) -> None:
    flags.DEFINE_string("mode", "train", "What to do.")
    flags.DEFINE_multi_string(
        "workdir", [], "Folder; by default runs/NAME, of sweeps runs/NAME_sweep."
    )
    flags.DEFINE_bool(
        "distributed", False, "Several hosts; the platform (TPU pod, Slurm) provides addresses."
    )
    flags.DEFINE_string("coordinator_address", None, "Several processes: HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
    flags.DEFINE_integer("process_id", None, "Several processes: number of this one, from 0.")
    define: dict[Any, Any] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        bool: flags.DEFINE_bool,
    }
    for name, (default, kind, text) in own_flags.items():
        if not text:
            continue
        (flags.DEFINE_multi_string if kind is list else define[kind])(name, default, text)


def _workdirs(given: Sequence[str], several: bool) -> list[str]:
    """The folders in `--workdir`: one per flag or, if the mode takes several, split at commas.

    Raises:
        InputError: there are several, and the mode takes one.

    Examples:
        >>> _workdirs(["runs/a,runs/b", "runs/c"], several=True)
        ['runs/a', 'runs/b', 'runs/c']
    """
    if several:
        return [
            folder
            for text in given
            for folder in ([text] if "," not in text or Path(text).exists() else text.split(","))
        ]
    if len(given) > 1:
        raise InputError(
            f"--workdir is given {len(given)} times ({', '.join(given)}); give it once. "
            "--mode=report takes several runs"
        )
    return list(given)


def _check_useful(given: Iterable[str], mode: str, uses: Sequence[str]) -> None:
    """Refuses settings that a mode for finished runs does not take."""
    for path in given:
        if path not in uses:
            raise InputError(
                f"--config.{path} has no effect in --mode={mode} on a finished run; leave it out. "
                "This mode takes "
                + (", ".join(f"--config.{path}" for path in uses) or "no --config settings")
            )


def _check_same_network_and_data(
    config: ConfigDict, saved: ConfigDict, workdir: Path, changed: set[str]
) -> None:
    """Refuses a --config file with another network or data than the run's: it would be ignored."""
    from gini_jax.training.workdir import differences

    differing = [
        text
        for path, text in differences(saved, config).items()
        if path.startswith(("model.", "dataset.")) and path not in {*changed, "model.init"}
    ]
    if differing:
        raise InputError(
            f"--config gives another network or other data than the run in {str(workdir)!r}:\n"
            + "\n".join(differing)
            + f"\nLeave --config out, and give --workdir={workdir}; the run's own config is used"
        )
