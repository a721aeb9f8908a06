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

import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
from gini_jax.config.change import changed, default_config, known_settings
from gini_jax.config.files import read_config, shipped_configs
from gini_jax.config.registry import ANY, SETTINGS, Setting, flattened
from gini_jax.config.values import written
from gini_jax.errors import InputError, RunError, Stopped, unknown_name
from gini_jax.storage import reading, run_path, storage_path
from gini_jax.training.checks import check_name

# A new mode is one new file in modes/, with FLAGS and main(config, workdir, **flags), and one line.
MODES = {
    "train": "trains, or resumes, a run (the default)",
    "sweep": "trains every combination of objectives, seeds and settings, and compares them",
    "report": "writes report.html, a page about a run or a sweep",
    "eval": "tests a checkpoint of a run again",
    "bench": "measures retrieval, robustness, pruning and other uses of finished runs' features",
    "predict": "classifies image files with a trained network",
    "embed": "writes features of images as Parquet; with --like, shows the nearest images of one",
    "export": "exports a trained network as safetensors, a torch file, StableHLO or ONNX",
    "summary": "shows parameters, feature shapes and operations of a network",
    "preview": "draws images, raw and augmented",
    "plan": "compiles the step for a TPU slice that need not be present",
}

FLAGS = flags.FLAGS
_CONFIG = re.compile(r"--?(no)?config(?:\.([^=]+))?(?:=(.*))?", re.S)
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
    if {"--help", "-h", "--helpfull", "-help"} & set(argv[1:]):
        print(usage())
        return None
    file, given, rest = _split(argv)
    mode = _mode_of(rest)
    module = importlib.import_module(f"gini_jax.modes.{mode}")
    _parse(rest, module)
    config = read_config(str(shipped_configs()["digits"]) if file is None else file)
    trains = mode in ("train", "sweep")
    if trains:
        changed(config, given, written)
    _start_jax()
    name = given.get("name", config.name)
    check_name(name)
    default = f"runs/{name or 'run'}" + ("_sweep" if mode == "sweep" else "")
    folders = _workdirs(FLAGS.workdir, "others" in module.FLAGS) or [default]
    workdir, *others = [run_path("--workdir", folder) for folder in folders]
    if not trains:
        config = _config_for(mode, module, workdir, config, file, given)
    storage_path("dataset.data_dir", config.dataset.data_dir)
    if not config.model.init.startswith("pip:"):
        run_path("model.init", config.model.init)
    own = [name for name, (_, _, text) in module.FLAGS.items() if text]
    values = {name.replace(".", "_"): FLAGS[name].value for name in own}
    if "command" in module.FLAGS:
        from gini_jax.modes.members import without

        switches = [f"no{name}" for name in own if module.FLAGS[name][1] is bool]
        shared = [f"--config={file}"] if file else []
        shared += [f"--config.{path}={text}" for path, text in given.items()]
        values["command"] = [*shared, *without(rest[1:], ("mode", "workdir", *own, *switches))]
    if "others" in module.FLAGS:
        values["others"] = others
    if values.get("init_from") and "model.init" in given:
        raise InputError(
            f"--init_from={values['init_from']} and --config.model.init={given['model.init']} both "
            "name weights to start from; give one of them"
        )
    with reading(workdir):
        try:
            return module.main(config, workdir, **values)
        except InputError as error:
            from gini_jax.modes.repair import repaired

            varied = any(argument.lstrip("-").startswith("vary") for argument in argv)
            if not trains or varied or not (command := repaired(argv, config, error)):
                raise
            raise InputError(f"{error}\nThe whole command with that:\n    {command}") from error


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
    module: Any,
    workdir: Path,
    config: ConfigDict,
    file: str | None,
    given: dict[str, str],
) -> ConfigDict:
    """The config of a mode that does not train: that of the run in the workdir, if there is one."""
    from gini_jax.training.workdir import saved_config

    uses = getattr(module, "USES", None)
    if uses is not None:
        _check_useful(given, mode, uses)
    with reading(workdir):
        has_run = (workdir / "config.json").exists()
    if not has_run or (uses is None and file is not None):
        return changed(config, given, written)
    saved = changed(saved_config(workdir), given, written)
    if file:
        _check_same_network_and_data(config, saved, workdir, {*given, *(uses or ())})
    return saved


def usage() -> str:
    """The text of `--help`: modes, flags and settings."""
    lines = [
        "Usage: python launch.py [--mode=MODE] [--config=FILE[:OBJECTIVE]] [--workdir=DIR]",
        "",
    ]
    lines += ["Modes, each with its own flags:"]
    for mode, meaning in MODES.items():
        lines.append(f"  --mode={mode:10} {meaning}")
        module = importlib.import_module(f"gini_jax.modes.{mode}")
        for name, (default, _, text) in module.FLAGS.items():
            if not text:
                continue
            shown = f"={default}" if default not in (None, "", False, []) else ""
            lines.append(f"      --{name}{shown}  {text}")
    lines += [
        "",
        f"Shipped configs: {', '.join(sorted(shipped_configs()))}",
        "Several hosts: --coordinator_address --num_processes --process_id, or --distributed alone",
        "where the platform (TPU pod, Slurm, Kubernetes) provides them.",
        "",
        "Settings, with the defaults that a config file starts from:",
        help_text(),
    ]
    return "\n".join(lines)


def help_text() -> str:
    """All settings with their defaults and meanings, in the table's order."""
    lines, section = [], None
    config = default_config()
    values = flattened(config)
    for path, row in SETTINGS.of(config).items():
        head = path.rpartition(".")[0]
        if head != section:
            lines.append("")
            section = head
        lines.append(_row_text(path, values[path], row))
    lines += ["", "Settings that each network, optimiser and schedule adds to its section:"]
    for section, registry in SETTINGS.sections.items():
        for name in registry:
            rows = registry.settings(name)
            own = ", ".join(f"{key}={row.default!r}" for key, row in rows.items())
            lines.append(
                f"  --config.{section}.name={name}\n      {own or 'no setting of its own'}"
            )
    lines += ["", "Terms, each with its weight and its own settings; to set only the weight, use"]
    lines += ["--config.loss.terms.gini=0.1:"]
    terms = {k: row for k, row in known_settings(config).items() if k.count(".") == 3}
    lines += [_row_text(path, row.default, row) for path, row in terms.items()]
    return "\n".join(lines[1:])


def _row_text(path: str, value: Any, row: Setting) -> str:
    rule = row.bounds if row.bounds != ANY else ""
    choices = ", ".join(str(choice) for choice in row.choices)
    rules = f" [{choices}]" if choices else (f"; in {rule}" if rule else "")
    return f"  --config.{path}={value!r}\n      {row.meaning.rstrip('.')}{rules}"


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


def _parse(argv: list[str], module: Any) -> None:
    """Reads all flags but those of the config."""
    for name in ("init_from", "seeds", "objectives", "benches", "images", "format"):
        if any(re.fullmatch(f"--?{name}=", argument) for argument in argv):
            raise InputError(f"--{name}= is empty; give a value, or leave it out")
    _define_flags(module)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}\nAll flags and settings: --help") from error
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; settings are --config.KEY=VALUE")


def _define_flags(module: Any) -> None:
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
    for name, (default, kind, text) in module.FLAGS.items():
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
