"""What `--help` says, and the flags of each mode, without importing what trains or draws.

Both follow from the package alone. They are collected once, which imports all of it, and kept in
the cache folder under a digest of the package's files.
"""

import contextlib
import importlib
import json
import os
import shutil
import textwrap
from functools import cache
from typing import Any

from gini_jax.errors import unknown_name
from gini_jax.version import package_digest

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
KINDS = {kind.__name__: kind for kind in (str, int, bool, list, tuple)}
RUN = "run"  # the part with the settings that stand in no section


def flags_of(mode: str) -> dict[str, tuple[Any, type, str]]:
    """By name, the default, type and meaning of a mode's own flags; no meaning: not for users.

    Examples:
        >>> flags_of("train")["init_from"][:2]
        (None, <class 'str'>)
    """
    rows = table()["modes"][mode]["flags"]
    return {name: (default, KINDS[kind], text) for name, (default, kind, text) in rows.items()}


def used_settings(mode: str) -> tuple[str, ...] | None:
    """The settings that a mode uses of a command line on a finished run; None: all of them."""
    uses = table()["modes"][mode]["uses"]
    return None if uses is None else tuple(uses)


def usage(part: str = "") -> str:
    """The text of `--help=PART`, as wide as the terminal.

    Args:
        part: a mode, a section of the settings, or `all`; "": what there is.

    Raises:
        InputError: there is no such part.

    Examples:
        >>> print(usage("schedule").splitlines()[0])
        Settings --config.schedule.SETTING, with their defaults:
    """
    parts = table()["help"]
    if part == "all":
        lines = [line for own in parts.values() for line in (*own, "")]
    elif part in parts:
        lines = parts[part]
    else:
        raise unknown_name("part of the help", part, [*filter(None, parts), "all"])
    width = max(40, min(100, shutil.get_terminal_size().columns))
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    wrapper = textwrap.TextWrapper(width, indent, f"{indent}    ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.fill(line.strip())


@cache
def table() -> dict[str, Any]:
    """Flags and help of this version of the package, from the cache folder if they are there."""
    from gini_jax.storage import default_folder

    path = default_folder() / "help" / f"{package_digest()}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    found = {"modes": _modes(), "help": _parts()}
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time alone
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(found))
        new.replace(path)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # as from the file


def _modes() -> dict[str, Any]:
    found = {}
    for mode in MODES:
        module = importlib.import_module(f"gini_jax.modes.{mode}")
        rows = {k: (v, kind.__name__, text) for k, (v, kind, text) in module.FLAGS.items()}
        found[mode] = {"flags": rows, "uses": getattr(module, "USES", None)}
    return found


def _parts() -> dict[str, list[str]]:
    """By part, its lines; the part "" says what there is."""
    modes = {mode: _mode_lines(mode) for mode in MODES}
    sections = _section_lines()
    names = {
        part: [line.split("=")[0].strip().split(".")[-1] for line in lines if "  --config" in line]
        for part, lines in sections.items()
    }
    overview = [
        "Usage: python launch.py --mode=MODE --config=FILE:OBJECTIVE --workdir=DIR "
        "--config.SETTING=VALUE ...",
        "All arguments may be left out.",
        "",
        "Modes; --help=MODE shows the flags of one:",
        *(f"  --mode={mode:8} {meaning}" for mode, meaning in MODES.items()),
        "",
        *_shared_lines(),
        "",
        "Settings; --help=SECTION shows those of one section, --help=all everything:",
    ]
    for part, own in names.items():
        own = [name for name in dict.fromkeys(own) if name != "name" or part in (RUN, "dataset")]
        overview.append(f"  {part:10} {textwrap.shorten(', '.join(own), 64, placeholder=' ...')}")
    return {"": overview, **modes, **sections}


def _mode_lines(mode: str) -> list[str]:
    module = importlib.import_module(f"gini_jax.modes.{mode}")
    lines = [f"--mode={mode}: {MODES[mode]}."]
    for name, (default, _, text) in module.FLAGS.items():
        if text:
            shown = f"={default}" if default not in (None, "", False, []) else ""
            lines += [f"  --{name}{shown}", f"      {text}"]
    return lines if len(lines) > 1 else [*lines, "  It has no flags of its own."]


def _shared_lines() -> list[str]:
    from gini_jax.config.files import shipped_configs

    return [
        f"Shipped configs: {', '.join(sorted(shipped_configs()))}",
        "Several hosts: --coordinator_address --num_processes --process_id, or --distributed alone "
        "where the platform (TPU pod, Slurm, Kubernetes) provides them.",
    ]


def _section_lines() -> dict[str, list[str]]:
    """All settings with their defaults and meanings, by section, in the table's order."""
    import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
    from gini_jax.config.change import default_config, known_settings
    from gini_jax.config.registry import SETTINGS, flattened

    config = default_config()
    values = flattened(config)
    found: dict[str, list[str]] = {}
    for path, row in SETTINGS.of(config).items():
        head = path.split(".")[0] if "." in path else RUN
        where = "--config.SETTING" if head == RUN else f"--config.{head}.SETTING"
        lines = found.setdefault(head, [f"Settings {where}, with their defaults:"])
        lines += _row_lines(path, values[path], row)
    for section, registry in SETTINGS.sections.items():
        lines = found.setdefault(section, [])
        lines += ["", f"Settings that each {section} adds:"]
        for name in registry:
            rows = registry.settings(name)
            own = ", ".join(f"{key}={row.default!r}" for key, row in rows.items())
            lines += [f"  --config.{section}.name={name}"]
            lines += [f"      {own or 'no setting of its own'}"]
    lines = found["loss"]
    lines += ["", "Terms, each with its weight and its own settings; to set only the weight, use"]
    lines += ["--config.loss.terms.gini=0.1:"]
    for path, row in known_settings(config).items():
        if path.count(".") == 3:
            lines += _row_lines(path, row.default, row)
    return found


def _row_lines(path: str, value: Any, row: Any) -> list[str]:
    from gini_jax.config.registry import ANY

    rule = row.bounds if row.bounds != ANY else ""
    choices = ", ".join(str(choice) for choice in row.choices)
    rules = f" [{choices}]" if choices else (f"; in {rule}" if rule else "")
    return [f"  --config.{path}={value!r}", f"      {row.meaning.rstrip('.')}{rules}"]
