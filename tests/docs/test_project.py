"""The files that describe the project agree with it."""

import importlib
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import bevkd2
from tests.docs.pages import ROOT, make_recipes


def project() -> dict[str, Any]:
    """The metadata in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_in_one_place_and_the_changelog_has_it():
    assert project()["dynamic"] == ["version"] and "version" not in project()
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading.group(1) == bevkd2.__version__


def test_the_api_reference_has_every_package():
    packages = {f"bevkd2.{path.parent.name}" for path in (ROOT / "bevkd2").glob("*/__init__.py")}
    pages = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"automodule:: (\S+)", pages)) == packages


def test_every_public_name_exists():
    missing = []
    for path in sorted((ROOT / "bevkd2").glob("*/__init__.py")):
        package = importlib.import_module(f"bevkd2.{path.parent.name}")
        names = getattr(package, "__all__", ())
        missing += [f"{package.__name__}.{name}" for name in names if not hasattr(package, name)]
    assert not missing


def test_yaml_files_of_the_project_are_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and len(citation["references"]) == 2
    assert all(reference["authors"] and reference["title"] for reference in citation["references"])
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff-check", "ruff-format", "clang-format", "mypy"} == {hook["id"] for hook in hooks}


def test_make_help_lists_every_target():
    # Under `make test`, the inherited variables would make this run report the folders that it enters.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    listed = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith("Variables")}
    targets = {name for name in make_recipes() if not name.startswith("$")}
    assert listed == targets


def test_the_devkit_is_required_only_where_its_numpy_has_wheels():
    found = [Requirement(line) for line in project()["dependencies"]]
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        environment = {"python_version": version, "extra": ""}
        names = {r.name.lower() for r in found if r.marker is None or r.marker.evaluate(environment)}
        assert {"numpy", "pillow", "torch"} <= names
        own = {"cachetools", "pyquaternion", "scikit-learn"}
        minor = int(version.split(".")[1])
        assert names & {"nuscenes-devkit", *own} == (own if minor >= 13 else {"nuscenes-devkit"})


def test_devkit_parts_import_nothing_that_is_not_required():
    """Of the devkit's requirements, those that bevkd2 does not list are not imported."""
    code = """
import sys
import bevkd2.nuscenes.devkit
print(*sorted({name.split(".")[0] for name in sys.modules if not name.startswith("_")}))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    absent = {
        "descartes",
        "fire",
        "pycocotools",
        "parameterized",
        "shapely",
    }  # the devkit's other requirements
    assert not loaded & absent and "nuscenes" in loaded


def test_manifest_takes_every_kind_of_source():
    manifest = (ROOT / "MANIFEST.in").read_text()
    kinds = {path.suffix for path in (ROOT / "csrc").rglob("*") if path.is_file()} - {".pyc", ".md"}
    line = next(line for line in manifest.splitlines() if line.startswith("recursive-include csrc"))
    assert {f"*{kind}" for kind in kinds} <= set(line.split())
