"""A text summary of a run."""

from pathlib import Path
from typing import Any


def summary_text(result: dict[str, Any], workdir: Path) -> str:
    """Summarises a finished run in a few lines.

    Args:
        result: what result.json holds.
        workdir: the run's folder.
    """
    val = result["val_accuracy"]
    chosen = "the last"
    names = ("report.html", "curves.png", "impurity.png")
    there = [name for name in names if (workdir / name).exists()]
    if val is not None:
        chosen = f"best of {result['epochs']} by validation accuracy {val:.4f}"
    top5 = "" if result["test_top5"] is None else f"   top-5 {result['test_top5']:.4f}"
    return "\n".join(
        [
            "",
            f"{result['config_name']}:{result['objective']}, seed {result['seed']}",
            f"  tested           epoch {result['best_epoch']}, {chosen}",
            f"  test accuracy    {result['test_accuracy']:.4f}{top5}",
            f"  test loss        {result['test_loss']:.4f}",
            f"  features' Gini   {result['feature_gini']:.4f}   KL {result['feature_kl']:.4f}",
            f"  training time    {result['train_seconds']:.0f} s, "
            f"{result['images_per_second']:,.0f} images/s on {result['device']}",
            f"  look at          {workdir}{': ' * bool(there)}{', '.join(there)}",
        ]
    )
