"""A report of a run or a sweep: one self-contained page."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from gini_jax.analysis import figures
from gini_jax.analysis.bench_pictures import drawings
from gini_jax.analysis.names import short_names, title_of
from gini_jax.analysis.page import mark_of, page_path
from gini_jax.analysis.runs import Run, differing_settings, read_runs, table_of
from gini_jax.analysis.sections import Section, picture, with_pictures
from gini_jax.analysis.sensitivity import sensitivity, varied_alone, varied_table
from gini_jax.analysis.statistics import (
    by_baseline,
    compare_by_seed,
    interval,
    number,
    over_common_seeds,
)
from gini_jax.config.files import command_of
from gini_jax.downstream import benches_of
from gini_jax.storage import write

MOST_GROUPS = 12  # that pictures show
MANY_GROUPS = 6  # whose pictures take longer than to start processes that share the work


def write_report(workdir: Path, *others: Path) -> Path:
    """Writes a page about the finished runs of some workdirs.

    Args:
        workdir: the folder of a run or sweep; report.html is written there.
        *others: workdirs to compare it with; the page is then comparison.html.

    Returns:
        The path of the page.

    Raises:
        InputError: there is no finished run.
    """
    folders = (workdir, *others)
    path, mark = page_path(folders), mark_of(folders)
    write(path, page_of(read_runs(*folders)) + mark)
    return path


def page_of(groups: dict[str, list[Run]]) -> str:
    """The page about runs, by group."""
    runs = [run for own in groups.values() for run in own]
    names, seeds = short_names(list(groups)), {run.result["seed"] for run in runs}
    baselines = {
        names.short[base]: [names.short[name] for name in compared]
        for base, compared in by_baseline(groups).items()
    }
    named = {
        names.short[group]: [dataclasses.replace(run, group=names.short[group]) for run in own]
        for group, own in groups.items()
    }
    shown = dict(list(named.items())[:MOST_GROUPS])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        title=title_of(runs[0].result["config_name"], list(groups), len(seeds)),
        legend=names.legend,
        findings=_findings(named, baselines),
        command=_against_cross_entropy(runs),
        results=[*_tables(named, baselines)],
        facts=_facts(named),
        sections=with_pictures(
            [*_sensitivity(groups), *_pictures(shown), *_benches(shown)], len(shown) >= MANY_GROUPS
        ),
        left_out=list(named)[MOST_GROUPS:],
        shown_count=MOST_GROUPS,
    )


def _against_cross_entropy(runs: list[Run]) -> str:
    """The commands that compare a single run with cross-entropy alone; "" if not applicable."""
    run = runs[0]
    if len(runs) > 1 or not run.config["loss"]["terms"]:
        return ""
    other = f"{run.folder}-ce"
    return "\n".join(
        [
            command_of(run.config, "ce", other),
            f"python launch.py --mode=report --workdir={run.folder},{other}",
        ]
    )


def _facts(groups: dict[str, list[Run]]) -> list[tuple[str, str]]:
    """Facts about the runs; where runs differ in a fact, all its values."""
    runs = [run for runs in groups.values() for run in runs]
    seeds = sorted({run.result["seed"] for run in runs})
    seconds = np.mean([run.result["train_seconds"] for run in runs])
    varied = [f"{path}: {', '.join(values)}" for path, values in differing_settings(runs).items()]

    def of_all(text: Callable[[Run], str]) -> str:
        return "; ".join(dict.fromkeys(map(text, runs)))

    return [
        ("Data", of_all(_data)),
        (
            "Network",
            of_all(
                lambda run: (
                    f"{run.config['model']['name']}, {run.result['num_parameters']:,} parameters, "
                    "terms on " + ", ".join(run.config["loss"]["layers"])
                )
            ),
        ),
        (
            "Training",
            of_all(
                lambda run: (
                    f"{run.result['epochs']} epochs in batches of "
                    f"{run.result.get('batch_size') or run.config['batch_size']}"
                    + f", terms from epoch {run.config['loss']['start_epoch']}"
                    * bool(run.config["loss"]["terms"])
                )
            ),
        ),
        ("Runs", f"{len(runs)}, in {len(groups)} group{'s' * (len(groups) > 1)}"),
        ("Seeds", ", ".join(map(str, seeds))),
        (
            "Hardware",
            of_all(lambda run: f"{run.result['device']}, jax {run.result['jax_version']}")
            + f"; {seconds:,.0f} s of training per run on average",
        ),
        ("Tested", of_all(_tested) + ", on the whole test split"),
        *([("They differ in", "; ".join(varied))] if varied else []),
    ]


def _data(run: Run) -> str:
    sizes = " / ".join(f"{run.about['examples'][name]:,}" for name in ("train", "val", "test"))
    return (
        f"{run.config['dataset']['name']}: {sizes} training, validation and test images, "
        f"{run.num_classes} classes"
    )


def _tested(run: Run) -> str:
    by_val = run.about["examples"]["val"]
    return "the checkpoint best by validation accuracy" if by_val else "the last checkpoint"


def _findings(groups: dict[str, list[Run]], compared: dict[str, list[str]]) -> list[str]:
    """The tables' main results, as sentences."""
    frame = table_of(groups)
    told = {name for names in compared.values() for name in names}
    alone = [_reached(name, runs) for name, runs in groups.items() if name not in told]
    against = [
        sentence
        for base, names in compared.items()
        for sentence in _against(frame[frame["group"].isin(names)], base)
    ]
    return alone + against


def _reached(name: str, runs: list[Run]) -> str:
    """A sentence on a group that is not compared with a baseline: the mean over its runs."""
    accuracy, gini = (
        np.array([run.result[key] for run in runs]) for key in ("test_accuracy", "feature_gini")
    )
    if len(runs) == 1:
        spread, tested = "", f" (tested epoch {runs[0].result['best_epoch']})"
    else:
        spread, tested = f" ± {accuracy.std(ddof=1):.4f}", f", the mean over {len(runs)} seeds"
    return (
        f"{name} reaches a test accuracy of {accuracy.mean():.4f}{spread}{tested}; the features' "
        f"Gini impurity is {gini.mean():.3f} (flat profiles: {1 - 1 / runs[0].num_classes:.3f})."
    )


def _against(frame: pd.DataFrame, base: str) -> Iterator[str]:
    """Sentences on the differences from a baseline group, one for each other group."""
    accuracy = compare_by_seed(frame, "test_accuracy", base)
    gini = compare_by_seed(frame, "feature_gini", base, larger_is_better=False)
    for name in accuracy.index.drop(base):
        row = accuracy.loc[name]
        pairs, p = int(row["pairs"]), row["holm_t"]
        if not pairs:
            yield f"{name} and {base} have no seed in common, so they are not compared."
            continue
        if pairs < 2:
            verdict = "one seed is too few for a significance test"
        elif np.isnan(p):
            verdict = "the difference is the same for every seed, so no test is defined"
        else:
            wide = f"95 % interval {interval(row['t_low'], row['t_high'])}"
            if p < 0.05:
                better = "better" if row["difference"] > 0 else "worse"
                verdict = f"{better} than {base} beyond chance ({wide}, Holm-corrected p = {p:.3f})"
            else:
                verdict = f"no difference beyond chance ({wide}, Holm-corrected p = {p:.2f})"
        gini_change = number(gini.loc[name, "difference"], 3, sign=True)
        yield (
            f"{name}: test accuracy {row['difference']:+.4f} against {base} over {pairs} paired "
            f"seeds: {verdict}. Gini impurity of the features {gini_change}."
        )


def _tables(groups: dict[str, list[Run]], compared: dict[str, list[str]]) -> Iterator[Section]:
    """One table over all metrics, a row for each group, and the paired comparison of accuracy."""
    frame = table_of(groups)
    titles = {
        k: t
        for k, (t, _) in frame.attrs["metrics"].items()
        if k in frame and frame[k].notna().any()
    }
    common = over_common_seeds(frame)
    means, spreads = (common.groupby("group")[list(titles)].agg(f) for f in ("mean", "std"))
    rows = [["", *titles.values()]]
    for name in groups:
        cells = []
        for metric in titles:
            mean, sd = number(means.loc[name, metric]), spreads.loc[name, metric]
            cells.append(mean if np.isnan(sd) else f"{mean} ± {number(sd)}")
        rows.append([name, *cells])
    seeds = "the seeds" if len(common) == len(frame) else "the seeds that all rows have"
    several = len(frame) > len(groups)
    text = f"Mean ± standard deviation over {seeds}. " if several else ""
    text += "Click a heading to sort." if len(groups) > 1 else ""
    yield Section("Results", text or "On the test split.", table=rows)
    rows = [["", "against", "difference", "95 % interval (t)", "p (t), Holm", "better in"]]
    for base, names in compared.items():
        table = compare_by_seed(frame[frame["group"].isin(names)], "test_accuracy", base)
        for name in table.index.drop(base):
            row = table.loc[name]
            rows.append(
                [
                    str(name),
                    base,
                    number(row["difference"], sign=True),
                    interval(row["t_low"], row["t_high"]),
                    number(row["holm_t"], 3),
                    f"{int(row['better'])} of {int(row['pairs'])}",
                ]
            )
    if len(rows) > 1:
        text = (
            "Test accuracy, paired by seed; Holm's correction is over the rows of one baseline. "
            "For all metrics see sweep.md next to this page."
        )
        yield Section("Against cross-entropy", text, table=rows)


def _sensitivity(groups: dict[str, list[Run]]) -> list[Section]:
    """How accuracy depends on what the sweep varied; nothing if no setting varied alone."""
    table = varied_table(groups)
    if not varied_alone(table):
        return []
    text = (
        "Mean and standard deviation of test accuracy over the seeds. A line joins runs that "
        "differ in one setting only; the dashed line and its band are cross-entropy alone."
    )
    return [picture("Accuracy by setting", text, sensitivity, table)]


def _pictures(groups: dict[str, list[Run]]) -> list[Section]:
    sections = [
        picture(
            "Training",
            _of_curves(groups),
            figures.curves,
            groups,
        ),
        picture(
            "Impurity of the features",
            "Each feature's Gini impurity on the test split. Left is pure; at the dashed line a "
            "feature fires equally for all classes.",
            figures.impurity,
            groups,
        ),
        picture(
            "Features by class",
            "Class profiles of the first layer that the terms act on. A bright dot is a feature "
            "that fires for that class.",
            figures.profiles,
            groups,
            pixels=True,
        ),
        picture(
            "Which classes the features serve",
            "The features' distribution over the classes (lines) and that of the test images "
            "(bars). The KL term pulls the first towards that of the training batches.",
            figures.distribution,
            groups,
        ),
        picture(
            "Test images in feature space",
            "Pooled features of at most 500 test images, coloured by class, or by superclass "
            "if the data has superclasses.",
            figures.embedding,
            groups,
            pixels=True,
        ),
    ]
    sections += [_fired(name, runs[0]) for name, runs in groups.items()]
    sections += [_confusion(name, runs[0]) for name, runs in groups.items()]
    if all("selection/sizes" in run.arrays for runs in groups.values() for run in runs):
        sections.append(
            picture(
                "Are pure features enough?",
                "Solid: only the n features of the lowest impurity are kept; dotted: random "
                "subsets of the same size.",
                figures.selection,
                groups,
            )
        )
    return sections


def _of_curves(groups: dict[str, list[Run]]) -> str:
    """What the curves show, in words."""
    runs = [run for own in groups.values() for run in own]
    bands = "; bands from the lowest to the highest seed" if len(runs) > len(groups) else ""
    text = f"Solid: validation split; dotted: training batches{bands}. "
    if not any("val_loss" in line for run in runs for line in run.lines):
        text = f"Dotted: training batches{bands}; there is no validation split. "
    elif any("val_gini" in line for run in runs for line in run.lines):
        text += (
            "Impurity and KL are those of the whole validation split. In single batches they "
            "differ, because a batch holds few examples per class. "
        )
    return text + "Dashed: the epoch from which the terms act; short ticks: the tested epochs."


def _fired(name: str, run: Run) -> Section:
    text = (
        "Each row is a feature, with its number and impurity, and the eight test images that "
        f"activate it most. Seed {run.result['seed']}."
    )
    title = f"What activates the features: {name}"
    return picture(title, text, figures.fired, run, pixels=True)


def _confusion(name: str, run: Run) -> Section:
    """By class for up to 20 classes, else by superclass, else the 20 worst pairs."""
    matrix, title = run.arrays["confusion"], f"Confusion: {name}"
    if run.num_classes <= 20:
        text = f"Test images, seed {run.result['seed']}."
        return picture(title, text, figures.confusion, matrix, run.class_names)
    names = run.about["superclass_names"]
    if names:
        merged = np.zeros((len(names), len(names)), int)
        np.add.at(merged, (run.groups[:, None], run.groups[None]), matrix)
        text = f"By superclass, seed {run.result['seed']}."
        return picture(title, text, figures.confusion, merged, names)
    wrong = matrix - np.diag(np.diag(matrix))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:20]
    rows = [["true class", "predicted as", "images"]]
    for i, j in zip(*np.unravel_index(worst, wrong.shape), strict=True):
        rows.append([run.class_names[i], run.class_names[j], str(wrong[i, j])])
    return Section(title, f"The 20 most frequent errors, seed {run.result['seed']}.", table=rows)


def _benches(groups: dict[str, list[Run]]) -> list[Section]:
    """Pictures of the benches that were run, and of settings that a sweep varied."""
    return [
        picture(title, text, draw, *arguments, pixels=True)
        for _, title, text, draw, arguments in drawings(groups, benches_of("all"))
    ]
