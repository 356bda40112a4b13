"""Compatibility of students, teachers and methods, and the errors of those that do not fit."""

import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.d2 import META_ARCH_REGISTRY
from bevkd2.distill import Distiller, is_distillation, resolve_teacher, student_config
from bevkd2.modeling.knowledge import MonoKnowledge
from tests.distill.pairs import Untrained, build, train_losses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("DISTILL.TEACHER.WEIGHTS", ""), ValueError, "DISTILL.TEACHER.WEIGHTS is empty"),
        (("DISTILL.TEACHER.WEIGHTS", "nowhere.pth"), FileNotFoundError, "nowhere.pth does not exist"),
        (
            ("DISTILL.TEACHER.OPTS", ["MODEL.BEVFORMER.NUM_QUERIES", 7]),
            ValueError,
            r"teacher\.pth[\s\S]*object_queries",
        ),
        (
            ("DISTILL.TEACHER.OPTS", ["MODEL.BEVFORMER.ENCODER_LAYERS", 3]),
            ValueError,
            r"teacher\.pth[\s\S]*missing",
        ),
        (("DISTILL.TEACHER.DTYPE", "float8"), ValueError, "float8.*bfloat16"),
        (("DISTILL.METHODS", ["BEVResponze"]), KeyError, "BEVResponze"),
        (
            ("MODEL.BEVFORMER.BEV_SHAPE", [4, 4], "DISTILL.METHODS", ["TemporalAttention"]),
            ValueError,
            r"teacher bev_queries is \(48, 16\), student's is \(16, 16\)",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error(teacher_files, options, error, message):
    with pytest.raises(error, match=message):
        build(teacher_files(*options))


def test_a_teacher_with_other_input_images_is_an_error(teacher_files):
    with pytest.raises(ValueError, match=r"INPUT.IMAGE_SCALE: the teacher's is 0.8, the student's is 0.5"):
        teacher_files("DISTILL.TEACHER.OPTS", ["INPUT.IMAGE_SCALE", 0.8])


def test_the_dumped_config_embeds_the_teacher(teacher_files, tmp_path):
    cfg = teacher_files()
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    (tmp_path / "teacher.yaml").unlink()
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "dumped.yaml"))
    resolve_teacher(again)
    assert isinstance(build(again), Distiller)


def test_weights_that_would_overwrite_what_is_inherited_are_an_error(teacher_files):
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS student.pth would overwrite.*INHERIT.MODE init"):
        build(teacher_files("MODEL.WEIGHTS", "student.pth", mode="init"))


@pytest.mark.parametrize("name", ["", "Distiller", "SubDistiller"])
def test_the_student_has_a_plain_architecture(teacher_files, name):
    with pytest.raises(ValueError, match=rf"DISTILL\.STUDENT\.META_ARCHITECTURE is '{name}'"):
        build(teacher_files("DISTILL.STUDENT.META_ARCHITECTURE", name))


class MonoOnly(Untrained):
    """Reads knowledge that a BEVFormer does not return."""

    node = "MONO_ONLY"
    knowledge = MonoKnowledge
    requires = frozenset({"depth"})


class ReadsHeatmap(Untrained):
    """Requires a field that is empty unless the model has an auxiliary head."""

    node = "READS_HEATMAP"
    requires = frozenset({"bev_heatmap"})


def test_a_method_on_a_detector_that_it_cannot_read_is_named_at_build_time(teacher_files):
    built = build(teacher_files("DISTILL.METHODS", []))
    pair = {"student": built.student, "teacher": built.teacher}
    with pytest.raises(
        ValueError,
        match=r"METHODS: MonoOnly reads MonoKnowledge, but the student, a BEVFormer, returns BEVKnowledge",
    ):
        Distiller(**pair, methods={"MonoOnly": MonoOnly("x")}, weights={"MonoOnly": 1.0})
    with pytest.raises(ValueError, match="DepthGuidedPrediction reads MonoKnowledge"):
        build(teacher_files("DISTILL.METHODS", ["DepthGuidedPrediction"]))


def test_a_required_field_that_a_detector_does_not_fill_is_named_at_build_time(teacher_files):
    built = build(teacher_files("DISTILL.METHODS", []))
    methods = {"ReadsHeatmap": ReadsHeatmap("x")}
    with pytest.raises(
        ValueError,
        match="ReadsHeatmap requires bev_heatmap, which the student, a BEVFormer, does not fill; leave",
    ):
        Distiller(
            student=built.student, teacher=built.teacher, methods=methods, weights={"ReadsHeatmap": 1.0}
        )


def test_a_layer_that_is_not_there_is_named_at_build_time(teacher_files):
    options = ("DISTILL.METHODS", ["SpatialAttention"], "DISTILL.SPATIAL_ATTENTION.LAYER_MAP", [[0, 7]])
    with pytest.raises(
        ValueError, match=r"DISTILL\.SPATIAL_ATTENTION\.LAYER_MAP: \[0, 7\] does not name a student layer"
    ):
        build(teacher_files(*options))


def test_a_required_field_that_is_left_empty_is_named(teacher_files, samples, monkeypatch):
    built = build(teacher_files("DISTILL.METHODS", []))
    methods = {"ReadsHeatmap": ReadsHeatmap("x")}
    monkeypatch.setattr(type(built.student), "filled_fields", lambda self: frozenset({"bev_heatmap"}))
    model = Distiller(
        student=built.student, teacher=built.teacher, methods=methods, weights={"ReadsHeatmap": 1.0}
    )
    with pytest.raises(ValueError, match="ReadsHeatmap requires bev_heatmap, which the student left empty"):
        train_losses(model, samples(1))


@META_ARCH_REGISTRY.register()
class SubDistiller(Distiller):
    """A distillation under a name of its own."""


@META_ARCH_REGISTRY.register()
class DistillerByNameOnly(torch.nn.Module):
    """Not a Distiller, although its name contains the word."""


def test_a_distillation_is_known_by_its_class(teacher_files):
    cfg = teacher_files("MODEL.META_ARCHITECTURE", "SubDistiller")
    assert is_distillation(cfg) and cfg.DISTILL.STUDENT.META_ARCHITECTURE == "BEVFormer"
    assert type(build(cfg)) is SubDistiller
    assert type(build(student_config(cfg))) is type(build(cfg).student)
    cfg.MODEL.META_ARCHITECTURE = "DistillerByNameOnly"
    assert not is_distillation(cfg)
