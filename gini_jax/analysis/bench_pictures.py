"""Pictures of benches: curves where a bench has some, else its numbers, by group."""

import re
from collections.abc import Iterator, Mapping
from itertools import cycle
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gini_jax.analysis.runs import Run
from gini_jax.drawing import COLOURS, as_png, mean_and_range, try_to_draw

Groups = dict[str, list[Run]]


def pictures(groups: Groups, modules: Mapping[str, ModuleType]) -> Iterator[tuple[str, bytes]]:
    """File names and PNGs of the pictures of benches; what cannot be drawn is left out."""
    found: list[tuple[str, bytes]] = []

    def keep(file: str, draw: Any, *arguments: Any) -> None:
        found.append((file, as_png(draw, *arguments)))

    for name, _, _, draw, arguments in drawings(groups, modules):
        try_to_draw(name, keep, name, draw, *arguments)
    yield from found


def drawings(
    groups: Groups, modules: Mapping[str, ModuleType]
) -> Iterator[tuple[str, str, str, Any, tuple[Any, ...]]]:
    """What the pictures of benches are drawn from, for the benches that were run.

    Yields:
        For each picture: file name, title, text, drawing function and its arguments.
    """
    for name, module in modules.items():
        title, _, text = (module.__doc__ or "").partition("\n")[0].partition(": ")
        text = f"{text[:1].upper()}{text[1:]}"
        if hasattr(module, "SETTING"):
            if varies(groups, module.SETTING):
                yield f"bench_{name}.png", title, text, by_setting, (groups, module)
            continue
        arrays = {
            group: own
            for group, runs in groups.items()
            if (own := [run.bench_arrays for run in runs if name in run.bench])
        }
        if not arrays:
            continue
        if getattr(module, "EACH_RUN", False):
            for group, own in arrays.items():
                file = f"bench_{name}_{re.sub(r'[^A-Za-z0-9_.=-]', '_', group)}.png"
                arrays_of = {group: [_of(name, own[0])]}
                arguments = arrays_of, groups[group][0].class_names
                yield file, f"{title}: {group}", text, module.draw, arguments
        elif hasattr(module, "draw"):
            yield f"bench_{name}.png", title, text, module.draw, (arrays,)
        else:
            yield f"bench_{name}.png", title, text, numbers, (groups, name, module.KEYS)


def _of(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays.items() if key.startswith(f"{name}/")}


def numbers(groups: Groups, bench: str, keys: Mapping[str, tuple[str, bool]]) -> Figure:
    """Each number of a bench: a point for each run, a line at the mean, by group."""
    had = [run.bench.get(bench, {}) for runs in groups.values() for run in runs]
    there = [key for key in keys if any(key in numbers for numbers in had)]
    figure = Figure(figsize=(3.4 * len(there) + 1, 0.32 * len(groups) + 1.6), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(there), squeeze=False)[0], there, strict=True):
        for i, (colour, runs) in enumerate(zip(cycle(COLOURS), groups.values(), strict=False)):
            values = [run.bench[bench][key] for run in runs if key in run.bench.get(bench, {})]
            if values:
                axis.scatter(values, [i] * len(values), color=colour, s=14, alpha=0.7, lw=0)
                axis.plot([np.mean(values)] * 2, [i - 0.3, i + 0.3], color=colour, lw=2)
        axis.set_yticks(range(len(groups)), list(groups) if key == there[0] else [])
        axis.invert_yaxis()
        axis.set_title(keys[key][0], fontsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x")
    return figure


def varies(groups: Groups, setting: str) -> bool:
    """Whether runs differ in a setting."""
    section, key = setting.split(".")
    found = {run.config[section].get(key, 0) for runs in groups.values() for run in runs}
    return len(found) > 1


def _value(run: Run, setting: str) -> float:
    section, key = setting.split(".")
    if setting == "dataset.train_size":  # where 0 is all
        return float(run.about["examples"]["train"])
    return float(run.config[section].get(key, 0))


def by_setting(groups: Groups, module: Any) -> Figure:
    """Test accuracy by a setting that a sweep varied, a line for each objective."""
    base: dict[str, dict[float, list[float]]] = {}
    for group, runs in groups.items():
        name = re.sub(rf"-{re.escape(module.SETTING)}=[^-]+(-\d+)?", "", group)
        for run in runs:
            own = base.setdefault(name, {})
            own.setdefault(_value(run, module.SETTING), []).append(run.result["test_accuracy"])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, by_value) in zip(cycle(COLOURS), base.items(), strict=False):
        x = sorted(by_value)
        seeds = min(len(by_value[value]) for value in x)
        values = np.array([by_value[value][:seeds] for value in x]).T
        mean_and_range(axis, x, values, colour, name, ".-")
    axis.set_xlabel(module.X_LABEL)
    axis.set_ylabel("test accuracy")
    axis.grid()
    axis.legend(fontsize=8)
    return figure
