"""The README's Quickstart stays complete: two sh blocks, each installing all that it needs."""

import re

from tests.conftest import ROOT


def test_the_quickstart_has_two_blocks_that_install_train_and_test():
    train, test = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block in (train, test):
        assert block.startswith("python3 -m venv .venv\n")
        assert "pip install -r requirements.txt" in block
    assert train.rstrip().endswith("launch.py")
    assert test.rstrip().endswith("pytest -n 2 --dist worksteal")


def test_every_config_is_in_the_table():
    page = (ROOT / "docs" / "training.md").read_text()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"`{path.stem}`" in page


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
