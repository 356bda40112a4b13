"""Configs of the multi-view detectors meet the published numbers, and teachers and students fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.modeling import BEVFormer
from tests.configs.shipped import (
    CONFIGS,
    DISTILLATIONS,
    MULTI_VIEW,
    config,
    name_of,
    on_meta,
    pair,
    parameters_m,
)

PAIRS = [path for path in DISTILLATIONS if path in MULTI_VIEW]
SIZES = ("tiny", "small", "base")

# Millions of parameters of the released weights of BEVFormer (github.com/fundamentalvision/BEVFormer).
PUBLISHED_PARAMETERS = {"tiny": 33.52, "small": 59.46, "base": 69.03}


def test_there_are_configs() -> None:
    assert len(MULTI_VIEW) >= 15 and len(PAIRS) >= 5


@pytest.mark.parametrize("size", SIZES)
def test_published_schedule(size: str) -> None:
    """The released configs: 24 epochs of 28,130 key frames, 8 per step, AdamW, a cosine to a thousandth."""
    solver = config(f"bevformer/bevformer_{size}.yaml").SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.IMS_PER_BATCH) == ("ADAMW", 2e-4, 8)
    steps_per_epoch = -(-28130 // 8)
    assert steps_per_epoch * 24 == solver.MAX_ITER and steps_per_epoch == solver.LR_HOLD_ITERS
    assert pytest.approx(solver.BASE_LR * 1e-3) == solver.BASE_LR_END


@pytest.mark.parametrize("size", SIZES)
def test_published_number_of_parameters(size: str) -> None:
    counted = parameters_m(config(f"bevformer/bevformer_{size}.yaml"))
    assert round(counted, 2) == PUBLISHED_PARAMETERS[size]


@pytest.mark.parametrize("size", SIZES)
def test_published_weights_config_differs_in_legacy_switches_only(size: str) -> None:
    mended = config(f"bevformer/bevformer_{size}.yaml")
    faulty = config(f"bevformer/bevformer_{size}_published.yaml")
    assert all(faulty.MODEL.BEVFORMER.LEGACY.values())
    assert faulty.MODEL.BEVFORMER.LEGACY.ROTATE_CENTER == [100, 100]
    assert not any(mended.MODEL.BEVFORMER.LEGACY.values())
    mended.MODEL.BEVFORMER.LEGACY = faulty.MODEL.BEVFORMER.LEGACY
    assert mended.OUTPUT_DIR != faulty.OUTPUT_DIR
    mended.OUTPUT_DIR = faulty.OUTPUT_DIR
    assert mended == faulty


# Table 1 of structured distillation (arXiv 2211.08398): backbone, BEV grid, decoder depth.
TABLE_1 = {
    1: (("teacher1_r101_150", 101, 1), ("student1_r50_150", 50, 1), [150, 150], 3),
    2: (("teacher2_rx101_150", 101, 32), ("student1_r50_150", 50, 1), [150, 150], 3),
    3: (("teacher3_r101_200", 101, 1), ("student3_r50_200", 50, 1), [200, 200], 6),
}


@pytest.mark.parametrize("number", TABLE_1)
def test_pair_is_that_of_the_paper(number: int) -> None:
    teacher_row, student_row, grid, decoder_layers = TABLE_1[number]
    student, teacher = pair(CONFIGS / "distill" / f"pair{number}.yaml")
    for cfg, (name, depth, groups) in ((teacher, teacher_row), (student, student_row)):
        assert config(f"bevformer/{name}.yaml").MODEL.BEVFORMER == cfg.MODEL.BEVFORMER
        assert config(f"bevformer/{name}.yaml").MODEL.RESNETS == cfg.MODEL.RESNETS
        assert (depth, groups) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS)
        assert grid == cfg.MODEL.BEVFORMER.BEV_SHAPE
        assert decoder_layers == cfg.MODEL.BEVFORMER.DECODER_LAYERS


@pytest.mark.parametrize("number", TABLE_1)
def test_method_is_that_of_the_paper(number: int) -> None:
    distill = config(f"distill/pair{number}.yaml").DISTILL
    assert distill.METHODS == ["TemporalAttention", "SpatialAttention", "BEVResponse"]
    assert distill.FACTOR == 0.01
    assert distill.INHERIT.MODE == "freeze"
    assert distill.INHERIT.PARAMS == ["bev_queries", "bev_position"]


def test_the_config_of_the_front_page_is_the_first_pair() -> None:
    front, first = config("distill_r50.yaml"), config("distill/pair1.yaml")
    assert Path(front.DISTILL.TEACHER.CONFIG).resolve() == Path(first.DISTILL.TEACHER.CONFIG).resolve()
    assert front.OUTPUT_DIR != first.OUTPUT_DIR
    front.DISTILL.TEACHER.CONFIG = first.DISTILL.TEACHER.CONFIG
    front.OUTPUT_DIR = first.OUTPUT_DIR
    assert front == first


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_student_can_inherit_and_be_distilled(path: Path) -> None:
    models = []
    for cfg in pair(path):
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            models.append(build_model(cfg))
    student, teacher = models
    assert isinstance(student, BEVFormer) and isinstance(teacher, BEVFormer)
    assert student.bev_shape == teacher.bev_shape
    ours, theirs = ({name: p.shape for name, p in m.inheritable().items()} for m in models)
    assert ours == theirs
    # What the attention methods compare: heads, levels, points.
    student_cfg, teacher_cfg = (cfg.MODEL for cfg in pair(path))
    for key in ("NUM_HEADS", "SPATIAL_POINTS", "TEMPORAL_POINTS", "PILLAR_POINTS"):
        assert student_cfg.BEVFORMER[key] == teacher_cfg.BEVFORMER[key]
    assert pair(path)[0].INPUT.POINT_RANGE == pair(path)[1].INPUT.POINT_RANGE
    assert student_cfg.FPN.NUM_OUTS == teacher_cfg.FPN.NUM_OUTS
    assert parameters_m(pair(path)[0]) < parameters_m(pair(path)[1])


def test_teachers_have_table_1s_parameter_counts():
    """Table 1: 56.57 and 65.93 million."""
    assert parameters_m(config("bevformer/teacher1_r101_150.yaml")) == pytest.approx(56.57, abs=0.05)
    assert parameters_m(config("bevformer/teacher3_r101_200.yaml")) == pytest.approx(65.93, abs=0.06)


@pytest.mark.parametrize("path", PAIRS, ids=name_of)
def test_what_starts_from_the_teacher_as_recommended_fits(path: Path) -> None:
    names = load_config(CONFIGS / "_base_" / "recommended_bev.yaml").DISTILL.INHERIT.INIT_PARAMS
    student, teacher = (on_meta(cfg).state_dict() for cfg in pair(path))
    for name in names:
        ours, theirs = (
            {key: tensor.shape for key, tensor in state.items() if key.startswith(name)}
            for state in (student, teacher)
        )
        assert ours == theirs and ours
