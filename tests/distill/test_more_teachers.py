"""Several teachers, each with its methods."""

import pytest
import torch

from bevkd2.checkpoint import save_file
from bevkd2.config import load_config
from bevkd2.distill import DISTILL_REGISTRY, Distiller, Teaching, resolve_teacher
from bevkd2.distill.config import more_distillations
from tests.distill.methods.harness import (
    build_detector,
    build_pair,
    detector_cfg,
    distill_losses,
    make_batch,
    method_node,
)
from tests.distill.pairs import build


def teaching(method, student, teacher, weight):
    node, shapes = method_node(method), (student.feature_shapes(), teacher.feature_shapes())
    return Teaching(teacher, {method: DISTILL_REGISTRY.get(method)(node, *shapes)}, {method: weight})


def test_each_teacher_adds_the_losses_of_its_methods():
    student = build_detector("PGD", 8, 2)
    first, second = build_detector("PGD", 16, 1), build_detector("PGD", 24, 3)
    torch.manual_seed(0)
    one, two = teaching("PKD", student, first, 1.0), teaching("PKD", student, second, 3.0)
    pair = {"student": student, "factor": 0.5}
    both = Distiller(
        **pair, teacher=first, methods=one.methods, weights=one.weights, more_teachers={"large": two}
    )
    losses = distill_losses(both, make_batch("PGD", 1))
    assert list(losses) == ["loss_distill_pkd", "loss_distill_large_pkd"]
    for teacher, part, name in ((first, one, "pkd"), (second, two, "large_pkd")):
        alone = Distiller(**pair, teacher=teacher, methods=part.methods, weights=part.weights)
        (expected,) = distill_losses(alone, make_batch("PGD", 1)).values()
        assert losses[f"loss_distill_{name}"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert not any(p.requires_grad for p in second.parameters()) and not second.training
    assert set(both.checkpoint_parts()["distill"].state_dict()) == {
        f"{name}.adapters.{i}.{part}"
        for name in ("PKD", "large_PKD")
        for i in (0, 1)
        for part in ("weight", "bias")
    }
    both.double()
    assert {next(teacher.parameters()).dtype for teacher in both.teachers} == {torch.float64}


def test_each_teacher_computes_only_what_its_own_methods_require(monkeypatch):
    model = build_pair("BEVFormer", "BEVResponse")
    other = build_detector("BEVFormer", 16, 4)
    more = {"other": teaching("PKD", model.student, other, 1.0)}
    first = model._teachings[""]
    both = Distiller(
        student=model.student,
        teacher=first.teacher,
        methods=first.methods,
        weights=first.weights,
        more_teachers=more,
    )
    asked = {}
    for name, teacher in zip(("first", "other"), both.teachers, strict=True):

        def extract(inputs, wants, name=name, original=teacher.extract_only):
            asked[name] = wants
            return original(inputs, wants)

        monkeypatch.setattr(teacher, "extract_only", extract)
    distill_losses(both, make_batch("BEVFormer", 1))
    assert asked == {"first": {"bev_embed", "bev_mask"}, "other": {"fpn", "image_sizes"}}


@pytest.fixture
def yaml_file(tmp_path):
    for name, width in (("first", 16), ("second", 24)):
        cfg = detector_cfg("PGD", width)
        torch.manual_seed(width)
        save_file({"model": build(cfg).state_dict()}, tmp_path / f"{name}.pth")
        (tmp_path / f"{name}.yaml").write_text(cfg.dump())
    (tmp_path / "student.yaml").write_text(detector_cfg("PGD", 8).dump())
    path = tmp_path / "distill.yaml"
    path.write_text(
        f"""
_BASE_: student.yaml
MODEL: {{META_ARCHITECTURE: Distiller}}
DISTILL:
  FACTOR: 1.0
  METHODS: [PKD]
  TEACHER: {{CONFIG: first.yaml, WEIGHTS: {tmp_path}/first.pth}}
  MORE_TEACHERS:
    - NAME: second
      CONFIG: second.yaml
      WEIGHTS: {tmp_path}/second.pth
      METHODS: [PKD, DepthGuidedPrediction]
      SETTINGS: {{PKD: {{WEIGHT: 2.0, SOURCES: [fpn.0]}}}}
"""
    )
    return path


def test_a_config_lists_teachers_with_their_methods_and_settings(yaml_file):
    cfg = load_config(yaml_file)
    resolve_teacher(cfg)
    model = build(cfg)
    assert [t.neck.out_channels for t in model.teachers] == [16, 24]
    assert list(model.methods) == ["PKD", "second_PKD", "second_DepthGuidedPrediction"]
    assert (model.weights["PKD"], model.weights["second_PKD"]) == (10.0, 2.0)
    assert [s.name for s in model.methods["second_PKD"].sources] == ["fpn.0"]
    assert len(distill_losses(model, make_batch("PGD", 1))) == 3


def test_a_dumped_config_needs_no_second_file(yaml_file, tmp_path):
    cfg = load_config(yaml_file)
    resolve_teacher(cfg)
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").unlink()
    again = load_config(tmp_path / "dumped.yaml")
    resolve_teacher(again)
    assert again.DISTILL == cfg.DISTILL
    assert [teacher.neck.out_channels for teacher in build(again).teachers] == [16, 24]


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("x", ValueError, r"MORE_TEACHERS\[0\] is 'x', expected a mapping with NAME"),
        ({"NAME": "a"}, ValueError, r"expected a mapping with NAME .*METHODS"),
        ({"NAME": "a b", "METHODS": ["PKD"]}, ValueError, r"NAME is 'a b', expected a word"),
        ({"NAME": "a", "METHODS": ["PKD"], "WEIGHT": 1}, KeyError, r"MORE_TEACHERS\[0\].*TEACHER\.WEIGHT"),
        ({"NAME": "a", "METHODS": ["PKD"], "SETTINGS": {"PKD": {"W": 1}}}, KeyError, r"PKD\.W"),
        (
            {"NAME": "a", "METHODS": ["PKD"], "SETTINGS": {"FACTOR": 2}},
            ValueError,
            "nodes of its METHODS: PKD",
        ),
        ({"NAME": "a", "METHODS": ["PKD"], "SETTINGS": {"FGD": {}}}, ValueError, "nodes of its METHODS: PKD"),
    ],
)
def test_wrong_entries_are_named(yaml_file, entry, error, message):
    cfg = load_config(yaml_file)
    cfg.DISTILL.MORE_TEACHERS = [entry]
    with pytest.raises(error, match=message):
        more_distillations(cfg)


def test_names_are_not_repeated(yaml_file):
    cfg = load_config(yaml_file)
    cfg.DISTILL.MORE_TEACHERS = cfg.DISTILL.MORE_TEACHERS * 2
    with pytest.raises(ValueError, match="NAME is 'second', expected a word that no other teacher has"):
        more_distillations(cfg)
