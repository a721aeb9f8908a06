"""The command line: reads flags and config, and calls one module of `gini_jax.modes`."""

import ast
import contextlib
import difflib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from gini_jax.checks import check_name
from gini_jax.config import OPTIONS, SETTINGS, all_rows, default_config, option_rows
from gini_jax.config_files import config_path, resolved, shipped_configs
from gini_jax.errors import InputError, RunError, Stopped, unknown_name
from gini_jax.settings import ANY, flattened
from gini_jax.storage import reading, run_path, storage_path

# A new mode is one new file in modes/, with FLAGS and main(config, workdir, **flags), and one line.
MODES = {
    "train": "trains, or resumes, a run (the default)",
    "sweep": "trains every combination of objectives, seeds and settings, and compares them",
    "report": "writes report.html, a page about a run or a sweep",
    "eval": "tests a checkpoint of a run again",
    "bench": "measures retrieval, robustness, pruning and other uses of finished runs' features",
    "predict": "classifies image files with a trained network",
    "export": "exports a trained network as safetensors, a torch file or StableHLO",
    "summary": "shows parameters, feature shapes and operations of a network",
    "preview": "draws images, raw and augmented",
    "plan": "compiles the step for a TPU slice that need not be present",
}

FLAGS = flags.FLAGS
_WORDS = re.compile(r"(?<=^--config\.)([\w.]+)=([A-Za-z]\w*(?:,[A-Za-z]\w*)*)$")
_TERM = re.compile(r"--?config\.loss\.terms\.(\w+)=(.*)")
_OPTION = re.compile(r"--?config\.(loss\.options\.\w+\.\w+)=(.*)")
_NETWORK = re.compile(r"--?config\.model\.name=.*")
_OF_NETWORK = re.compile(r"--?config\.(model\.(?!name=|init=)\w+)=(.*)")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; an expected error is printed in one message and ends the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        with contextlib.suppress(OSError):  # what a program put in its place may not allow it
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(list(sys.argv if argv is None else argv))
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)
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
    argv = _joined(argv)
    mode = _mode_of(argv)
    module = importlib.import_module(f"gini_jax.modes.{mode}")
    config, terms, later = _parse(argv, module)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # hides the libraries' info messages
    from gini_jax import devices  # jax starts here

    devices.prepare_cpu()
    several = (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    if FLAGS.distributed or any(value is not None for value in several):
        devices.connect(*several)
    given = dict(config_flags.get_override_values(FLAGS["config"]))
    given |= {path: _typed(given, path, text) for path, text in later.items()}
    check_name(config.name)
    default = f"runs/{config.name or 'run'}" + ("_sweep" if mode == "sweep" else "")
    folders = _workdirs(FLAGS.workdir, "others" in module.FLAGS) or [default]
    workdir = run_path("--workdir", folders[0])
    with reading(workdir):
        has_run = (workdir / "config.json").exists()
    uses = getattr(module, "USES", None)
    if uses is not None:
        _check_useful([*given, *(f"loss.terms.{name}" for name in terms)], mode, uses)
    if mode not in ("train", "sweep") and has_run and not (uses is None and _config_given()):
        saved = _saved_with(given, terms, workdir)
        if _config_given():
            _check_same_network_and_data(config, saved, workdir, {*given, *(uses or ())})
        config = saved
    else:
        config = resolved(config, given, terms)
    storage_path("dataset.data_dir", config.dataset.data_dir)
    if not config.model.init.startswith("pip:"):
        run_path("model.init", config.model.init)
    own = [name for name, (_, _, text) in module.FLAGS.items() if text]
    values = {name.replace(".", "_"): FLAGS[name].value for name in own}
    if "command" in module.FLAGS:
        from gini_jax.training.members import without

        switches = [f"no{name}" for name in own if module.FLAGS[name][1] is bool]
        values["command"] = list(without(argv[1:], ("mode", "workdir", *own, *switches)))
    if "others" in module.FLAGS:
        values["others"] = [run_path("--workdir", folder) for folder in folders[1:]]
    with reading(workdir):
        try:
            return module.main(config, workdir, **values)
        except InputError as error:
            from gini_jax.repair import repaired

            if mode not in ("train", "sweep") or not (command := repaired(argv, config, error)):
                raise
            raise InputError(f"{error}\nThe whole command with that:\n    {command}") from error


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
    for path, row in all_rows(config).items():
        head = path.rpartition(".")[0]
        if head != section:
            lines.append("")
            section = head
        rule = row.bounds if row.bounds != ANY else ""
        choices = ", ".join(str(choice) for choice in row.known())
        rules = f" [{choices}]" if choices else (f"; in {rule}" if rule else "")
        lines.append(f"  --config.{path}={values[path]!r}\n      {row.meaning}{rules}")
    return "\n".join(lines[1:])


def _joined(argv: list[str]) -> list[str]:
    """Flags of the config and the mode as one argument each, `--config FILE` as `--config=FILE`.

    Examples:
        >>> _joined(["launch.py", "--config", "digits:ce", "-mode=eval"])
        ['launch.py', '--config=digits:ce', '--mode=eval']
    """
    joined: list[str] = []
    for arg in argv:
        spaced = joined and re.fullmatch(r"--(config|mode|config\.model\.\w+)", joined[-1])
        if spaced and not arg.startswith("-"):
            joined[-1] += f"={arg}"
        else:
            joined.append(re.sub(r"^--?(config|mode)(?==|$)", r"--\1", arg))
    return joined


def _as_tuple(match: re.Match[str]) -> str:
    """Words separated by commas as a tuple, where the setting takes one.

    Examples:
        >>> _WORDS.sub(_as_tuple, "--config.loggers=jsonl,wandb")
        "--config.loggers=('jsonl', 'wandb')"
        >>> _WORDS.sub(_as_tuple, "--config.model.name=cvt13")
        '--config.model.name=cvt13'
    """
    path, words = match.groups()
    if path not in SETTINGS or not isinstance(SETTINGS[path].default, tuple):
        return match[0]
    return f"{path}={tuple(words.split(','))}"


def _mode_of(argv: list[str]) -> str:
    modes = [arg.partition("=")[2] for arg in argv if re.match(r"--?mode=", arg)]
    mode = modes[-1] if modes else "train"
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    return mode


def _parse(argv: list[str], module: Any) -> tuple[ConfigDict, dict[str, float], dict[str, str]]:
    """The config, with the overrides of the command line; and what it cannot take yet.

    That is the weights of terms, and the settings of terms and of another network than the config
    file's.
    """
    terms: dict[str, float] = {}
    later: dict[str, str] = {}
    another = any(map(_NETWORK.fullmatch, argv))
    files = [arg for arg in argv[1:] if arg.startswith("--config=")]
    if len(files) > 1:
        raise InputError(f"{' and '.join(files)}: give one config")
    kept = argv[:1]
    for arg in argv[1:]:
        if match := _TERM.fullmatch(arg):
            terms[match[1]] = _number(arg, match[2])
        elif match := _OPTION.fullmatch(arg) or (_OF_NETWORK.fullmatch(arg) if another else None):
            later[match[1]] = match[2]
        elif arg.startswith("--config="):  # before its settings, wherever it was given
            kept.insert(1, f"--config={config_path(arg.partition('=')[2])}")
        else:
            kept.append(_WORDS.sub(_as_tuple, arg))
    try:
        _define_flags(module, kept)
        rest = FLAGS(kept)
        config = FLAGS.config
        _ = config.name
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        own, cause = None, error.__context__
        while cause is not None:  # the library wraps an error of the config file in others
            own, cause = cause if isinstance(cause, InputError) else own, cause.__context__
        if own:
            raise own from error
        reason: object = error
        while isinstance(reason, Exception) and len(reason.args) == 1:
            reason = reason.args[0]
        kind = "unknown setting " if isinstance(error, AttributeError) else ""
        near = _nearest(str(reason)) if kind else ""
        raise InputError(f"{kind}{reason}{near}\nAll flags and settings: --help") from error
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; settings are --config.KEY=VALUE")
    return config, terms, later


def _nearest(name: str) -> str:
    """The settings whose last part is closest to a name's, as a hint.

    Examples:
        >>> _nearest("'learning_rate'")
        '; did you mean schedule.learning_rate?'
    """
    last = re.sub(r"[^\w.].*$", "", name.strip("'\"")).rpartition(".")[2]
    by_end = {path.rpartition(".")[2]: path for path in SETTINGS}
    found = difflib.get_close_matches(last, by_end, n=1)
    return f"; did you mean {by_end[found[0]]}?" if found else ""


def _typed(given: dict[str, Any], path: str, text: str) -> Any:
    """The value of a setting of the given network, or of a term; its type is checked later."""
    from gini_jax.models.registry import model_rows

    if path.startswith(OPTIONS):
        row = option_rows().get(path)
    else:
        row = model_rows(given["model.name"]).get(path.removeprefix("model."))
    kind = type(row.default) if row else str
    if kind is bool and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return (value,) if kind is tuple and not isinstance(value, (tuple, list)) else value


def _define_flags(module: Any, argv: list[str]) -> None:
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
    config_flags.DEFINE_config_file(
        "config", str(shipped_configs()["digits"]), "FILE or FILE:OBJECTIVE.", sys_argv=argv
    )


def _workdirs(given: Sequence[str], several: bool) -> list[str]:
    """The folders that `--workdir` names, each as a flag or, where several fit, after commas.

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


def _number(arg: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{arg}: the weight of a term is a number, such as 0.5") from error


def _config_given() -> bool:
    return bool(FLAGS["config"].present)


def _check_useful(given: Sequence[str], mode: str, uses: Sequence[str]) -> None:
    """Refuses settings that a mode for finished runs does not take."""
    for path in given:
        if path not in uses:
            raise InputError(
                f"--config.{path} has no effect in --mode={mode} on a finished run; leave it out. "
                "This mode takes "
                + (", ".join(f"--config.{path}" for path in uses) or "no --config settings")
            )


def _saved_with(given: dict[str, Any], terms: dict[str, float], workdir: Path) -> ConfigDict:
    """The config of a finished run, with the changes that the command line makes."""
    from gini_jax.training.workdir import saved_config

    config = saved_config(workdir)
    later = (OPTIONS, "model.") if "model.name" in given else (OPTIONS,)
    config.update_from_flattened_dict(
        {key: value for key, value in given.items() if not key.startswith(later)}
    )
    return resolved(config, given, terms)


def _check_same_network_and_data(
    config: ConfigDict, saved: ConfigDict, workdir: Path, changed: set[str]
) -> None:
    """Refuses a --config file whose network or data are not the run's, which would be ignored."""
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
