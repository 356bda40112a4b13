"""The YAML file of every method: it sets up that method, goes with any student, and can be combined."""

import pytest
import torch
import yaml

from bevkd2.config import load_config
from bevkd2.distill import DISTILL_REGISTRY, is_distillation
from tests.configs.shipped import CONFIGS
from tests.distill.methods.catalog import CATALOG
from tests.distill.methods.harness import build_pair, distill_losses, make_batch

FOLDER = CONFIGS / "_base_" / "methods"
METHODS = {method.node.lower(): name for name, method in DISTILL_REGISTRY if "bevkd2" in method.__module__}
STUDENTS = ("demo/student.yaml", "demo_mono/student.yaml", "bevformer/bevformer_tiny.yaml")


def own(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_every_method_has_a_file_named_after_its_node():
    files = {path.stem for path in FOLDER.glob("*.yaml")}
    assert set(METHODS) <= files
    for variant in files - set(METHODS):
        assert any(variant.startswith(f"{name}_") for name in METHODS), variant


@pytest.mark.parametrize("name", METHODS)
def test_it_names_one_method_and_says_where_it_is_from(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    distill = own(name)["DISTILL"]
    assert distill["METHODS"] == [METHODS[name]]
    assert set(distill) <= {"METHODS", "FACTOR", "INHERIT", "TEACHER", name.upper()}


@pytest.mark.parametrize("student", STUDENTS)
def test_it_goes_with_any_student(student, tmp_path):
    for name in METHODS:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"_BASE_: [configs/{student}, configs/_base_/methods/{name}.yaml]\n")
        cfg = load_config(path)
        assert is_distillation(cfg) and [METHODS[name]] == cfg.DISTILL.METHODS
        assert cfg.DISTILL.STUDENT.META_ARCHITECTURE in ("BEVFormer", "PGD")


def test_methods_are_combined_on_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: [configs/demo/student.yaml, configs/_base_/methods/pkd.yaml]\n")
    cfg = load_config(tmp_path / "a.yaml", ["DISTILL.METHODS", "[PKD, BEVResponse]"])
    assert cfg.DISTILL.METHODS == ["PKD", "BEVResponse"]


@pytest.mark.parametrize("name", METHODS)
def test_its_settings_are_built_and_stepped_once_on_every_family(name):
    entry = next(entry for entry in CATALOG if entry.method == METHODS[name])
    settings = own(name)["DISTILL"].get(name.upper(), {})
    for detector in entry.detectors:
        model = build_pair(
            detector,
            entry.method,
            student_width=entry.student_width,
            options=entry.options,
            **{**entry.settings, **settings},
        )
        losses = distill_losses(model, make_batch(detector, 1, 2, 3))
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert total.isfinite() and any(p.grad is not None for p in model.student.parameters())
