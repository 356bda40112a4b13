"""Configs of the multi-view detectors: they say what was published, and fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.modeling import BEVFormer
from tests.configs.shipped import CAFFE, CONFIGS, DISTILLATIONS, MULTI_VIEW, RGB, config, pair, parameters_m

PAIRS = [path for path in DISTILLATIONS if path in MULTI_VIEW]
SIZES = ("tiny", "small", "base")

# The released configs of BEVFormer (projects/configs/bevformer of its repository), all of them trained on
# 8 GPUs with one sample each.
PUBLISHED = {
    "tiny": {
        "bev_shape": [50, 50],
        "encoder_layers": 3,
        "image_scale": 0.5,
        "queue_length": 3,
        "normalisation": RGB,
        "backbone": (50, False, [False] * 4),
        "levels": (["res5"], 1),
        "parameters_m": 33.52,
    },
    "small": {
        "bev_shape": [150, 150],
        "encoder_layers": 3,
        "image_scale": 0.8,
        "queue_length": 3,
        "normalisation": CAFFE,
        "backbone": (101, True, [False, False, True, True]),
        "levels": (["res5"], 1),
        "parameters_m": 59.46,
    },
    "base": {
        "bev_shape": [200, 200],
        "encoder_layers": 6,
        "image_scale": 1.0,
        "queue_length": 4,
        "normalisation": CAFFE,
        "backbone": (101, True, [False, False, True, True]),
        "levels": (["res3", "res4", "res5"], 4),
        "parameters_m": 69.03,
    },
}


def test_there_are_configs() -> None:
    assert len(MULTI_VIEW) >= 15 and len(PAIRS) >= 5


@pytest.mark.parametrize("size", SIZES)
def test_published_architecture(size: str) -> None:
    cfg, published = config(f"bevformer/bevformer_{size}.yaml"), PUBLISHED[size]
    model, bev = cfg.MODEL, cfg.MODEL.BEVFORMER
    assert published["bev_shape"] == bev.BEV_SHAPE
    assert published["encoder_layers"] == bev.ENCODER_LAYERS
    assert published["normalisation"] == (model.PIXEL_FORMAT, model.PIXEL_MEAN, model.PIXEL_STD)
    backbone = model.RESNETS
    assert published["backbone"] == (backbone.DEPTH, backbone.STRIDE_IN_1X1, backbone.DEFORM_ON_PER_STAGE)
    assert published["levels"] == (model.FPN.IN_FEATURES, model.FPN.NUM_OUTS)
    assert backbone.OUT_FEATURES == model.FPN.IN_FEATURES
    assert (
        published["image_scale"],
        published["queue_length"],
    ) == (cfg.INPUT.IMAGE_SCALE, cfg.INPUT.QUEUE_LENGTH)
    assert (model.BACKBONE.FREEZE_AT, backbone.NORM, model.SIZE_DIVISIBILITY) == (2, "FrozenBN", 32)
    assert (bev.EMBED_DIM, bev.NUM_HEADS, bev.FFN_DIM, bev.DROPOUT) == (256, 8, 512, 0.1)
    assert (bev.DECODER_LAYERS, bev.NUM_QUERIES, bev.QUERY_INIT) == (6, 900, "random")
    assert (bev.PILLAR_POINTS, bev.SPATIAL_POINTS, bev.TEMPORAL_POINTS, bev.DECODER_POINTS) == (4, 8, 4, 4)
    assert bev.PC_RANGE == [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
    assert bev.POST_CENTER_RANGE == [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
    assert (bev.MAX_DETECTIONS, bev.SCORE_THRESHOLD) == (300, 0.0)
    assert (bev.AUX.BEV_HEATMAP_WEIGHT, bev.AUX.IMAGE_HEATMAP_WEIGHT) == (0.0, 0.0)


@pytest.mark.parametrize("size", SIZES)
def test_published_training(size: str) -> None:
    cfg = config(f"bevformer/bevformer_{size}.yaml")
    solver, loss, mask = cfg.SOLVER, cfg.MODEL.BEVFORMER.LOSS, cfg.MODEL.GRID_MASK
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 2e-4, 0.01)
    assert (solver.BACKBONE_MULTIPLIER, solver.IMS_PER_BATCH) == (0.1, 8)
    steps_an_epoch = -(-28130 // 8)  # key frames of the training split
    assert steps_an_epoch * 24 == solver.MAX_ITER and steps_an_epoch == solver.LR_HOLD_ITERS
    assert solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
    assert pytest.approx(solver.BASE_LR * 1e-3) == solver.BASE_LR_END
    assert (solver.WARMUP_ITERS, solver.WARMUP_METHOD) == (500, "linear")
    assert pytest.approx(1 / 3) == solver.WARMUP_FACTOR
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_VALUE, clip.NORM_TYPE) == (True, 35.0, 2.0)
    assert (loss.CLS_WEIGHT, loss.FOCAL_ALPHA, loss.FOCAL_GAMMA, loss.BOX_WEIGHT) == (2.0, 0.25, 2.0, 0.25)
    assert loss.CODE_WEIGHTS == [1.0] * 8 + [0.2] * 2 and loss.CENTER_WEIGHT == 1.0
    assert (mask.ENABLED, mask.PROB, mask.RATIO, mask.MODE) == (True, 0.7, 0.5, 1)
    assert cfg.INPUT.PHOTOMETRIC


@pytest.mark.parametrize("size", SIZES)
def test_published_number_of_parameters(size: str) -> None:
    counted = parameters_m(config(f"bevformer/bevformer_{size}.yaml"))
    assert round(counted, 2) == PUBLISHED[size]["parameters_m"]


@pytest.mark.parametrize("size", SIZES)
def test_published_faults_are_all_that_distinguishes_the_config_of_published_weights(size: str) -> None:
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
    weights = load_config(CONFIGS / "distill" / f"pair{number}.yaml").DISTILL.TEACHER.WEIGHTS
    assert Path(weights).stem == teacher_row[0]


@pytest.mark.parametrize("number", TABLE_1)
def test_method_is_that_of_the_paper(number: int) -> None:
    distill = config(f"distill/pair{number}.yaml").DISTILL
    assert distill.METHODS == ["TemporalAttention", "SpatialAttention", "BEVResponse"]
    assert distill.FACTOR == 0.01
    assert distill.INHERIT.MODE == "freeze"
    assert distill.INHERIT.PARAMS == ["bev_queries", "bev_position", "object_queries"]


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
    for key in ("NUM_HEADS", "SPATIAL_POINTS", "TEMPORAL_POINTS", "PILLAR_POINTS", "PC_RANGE"):
        assert student_cfg.BEVFORMER[key] == teacher_cfg.BEVFORMER[key]
    assert student_cfg.FPN.NUM_OUTS == teacher_cfg.FPN.NUM_OUTS
    assert parameters_m(pair(path)[0]) < parameters_m(pair(path)[1])


def test_teachers_have_table_1s_parameter_counts():
    """Table 1: 56.57 and 65.93 million."""
    assert parameters_m(config("bevformer/teacher1_r101_150.yaml")) == pytest.approx(56.57, abs=0.05)
    assert parameters_m(config("bevformer/teacher3_r101_200.yaml")) == pytest.approx(65.93, abs=0.06)
