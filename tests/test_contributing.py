"""The recipes of CONTRIBUTING.md, followed literally: one new file and one line each."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import QUICK, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# section -> new file, table, the line after which its line goes
RECIPES = {
    "Loss": ("losses/moving_center.py", "losses/terms.py", '    "renyi": of_'),
    "Network": ("models/tiny_vit.py", "models/registry.py", "        **cvt.NETWORKS"),
    "Data source": ("data/images_folder.py", "data/__init__.py", '        "digits": D'),
    "Evaluation": ("evals/nearest.py", "evals/__init__.py", '        "selection": s'),
    "Bench": ("downstream/bfloat16.py", "downstream/__init__.py", '        "prune": p'),
    "Mode": ("modes/settings.py", "help.py", '    "plan": "'),
    "Executor": (
        "modes/executors/shuffled.py",
        "modes/executors/__init__.py",
        '        "slurm": s',
    ),
}


def recipe(section):
    """The Python file of a recipe, and the line that goes into the table."""
    part = TEXT.split(f"### {section}\n")[1].split("\n### ")[0]
    code = re.search(r"```python\n(.*?)```", part, re.S).group(1)
    return code, re.search(r"```\n(    .*?)\n```", part).group(1)


def follow(section, root):
    """Adds the file and the line to a copy of the project."""
    file, table, after = RECIPES[section]
    code, line = recipe(section)
    new = root / "gini_jax" / file
    assert not new.exists()
    new.write_text(code)
    path = root / "gini_jax" / table
    lines = path.read_text().splitlines()
    place = next(i for i, text in enumerate(lines) if text.startswith(after))
    path.write_text("\n".join([*lines[: place + 1], line, *lines[place + 1 :]]) + "\n")


def launch(root, *arguments):
    environment = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which all recipes were followed."""
    root = tmp_path_factory.mktemp("project")
    for name in ("gini_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", root)
    for section in RECIPES:
        follow(section, root)
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(128 * label, 128 * label + 100, (12, 9 + i, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.mark.slow
def test_all_recipes_work_together(project):
    out = launch(
        project,
        "--config=tests/helpers/tiny.py:ce",
        "--config.num_epochs=1",
        "--config.loss.start_epoch=1",
        "--config.loss.terms.moving_center=0.01",
        "--config.loss.terms.moving_center.rate=0.2",
        "--config.loss.layers=('tokens',)",
        "--config.model.name=tiny_vit",
        "--config.evals=('nearest',)",
        "--config.dataset.name=images",
        "--config.dataset.num_classes=0",
        "--config.dataset.image_size=8",
        f"--config.dataset.data_dir={project / 'images'}",
        "--config.batch_size=8",
        "--config.augment.crop_padding=0",
        "--workdir=run",
    )
    assert "tiny:moving_center" in out
    assert "4 steps of 8 images" in out
    assert "nearest_accuracy" in (project / "run" / "result.json").read_text()
    table = "import gini_jax.evals as s; print(s.TITLES['nearest_accuracy'])"
    said = subprocess.run(
        [sys.executable, "-c", table], cwd=project, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "('Nearest neighbour', True)"  # so sweep.md has it
    assert "train_moving_center" in (project / "run" / "metrics.jsonl").read_text()
    shown = launch(project, "--mode=settings", "--section=loss", "--workdir=run")
    assert "moving_center:" in shown and "weight: 0.01" in shown
    assert "rate: 0.2" in shown
    sweep = (
        "--mode=sweep",
        "--config=tests/helpers/tiny.py:ce",
        "--executor=shuffled",
        "--order=3",
    )
    assert "--config.seed=0" in launch(project, *sweep, "--dry_run")
    launch(project, "--mode=bench", "--workdir=run", "--benches=bfloat16")
    assert "bfloat16_accuracy" in (project / "run" / "bench.json").read_text()
