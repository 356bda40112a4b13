"""Configs of the monocular detectors meet the published numbers, and teachers and students fit together.

The paper is "Beyond the limitation of monocular 3D detector via knowledge distillation" (Yang et al., ICCV
2023), section 4.2 and Tables 1 to 6; the published configs are mmdetection3d's. SMOKE: test_smoke_configs.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bevkd2.distill  # noqa: F401  (registers the methods)
from bevkd2.config import class_names, load_config
from bevkd2.distill.methods import DISTILL_REGISTRY
from bevkd2.modeling.mono.fcos3d.config import pgd_arguments
from tests.configs.shipped import (
    CONFIGS,
    DISTILLATIONS,
    MONOCULAR,
    built,
    config,
    name_of,
    on_meta,
    pair,
)

PAIRS = [path for path in DISTILLATIONS if path in MONOCULAR]
KITTI_IMAGES, NUSCENES_IMAGES = 3712, 28130 * 6

# Millions of parameters. Those of ResNet-101 are the published weights' (tests/checkpoint); for half channels
# on ResNet-18 the paper has 14.31 (docs/model_zoo.md).
PARAMETERS = {
    "pgd/fcos3d_r101_nuscenes": 54.95,
    "pgd/pgd_r101_kitti": 54.84,
    "pgd/pgd_r101_kitti_paper": 54.84,
    "pgd/pgd_r101_nuscenes": 56.13,
    "pgd/pgd_r101_nuscenes_1x": 56.13,
    "pgd/pgd_r18_kitti": 22.78,
    "pgd/pgd_r18_half_kitti": 14.18,
    "pgd/pgd_r18_nuscenes": 22.32,
    "pgd/pgd_r50_nuscenes": 35.34,
    "pgd/pgd_regnetx32_kitti": 26.09,
    "pgd/pgd_regnetx08_kitti": 18.24,
    "pgd/pgd_regnetx08_half_kitti": 9.61,
    "pgd/pgd_mobilenetv2_kitti": 13.29,
    "pgd/pgd_shufflenetv2_kitti": 12.35,
    "smoke/smoke_dla34_kitti": 19.47,
    "smoke/smoke_dla60_kitti": 36.05,
}
# Teacher and student of every distillation, and where the paper has them.
TABLES: dict[str, tuple[str, str]] = {
    "distill/kitti_r101_r18_half": ("pgd_r101_kitti_paper", "pgd_r18_half_kitti"),  # Tables 1-3, 5
    "distill/kitti_r101_r18": ("pgd_r101_kitti_paper", "pgd_r18_kitti"),  # Tables 3, 5
    "distill/kitti_r101_mobilenetv2": ("pgd_r101_kitti_paper", "pgd_mobilenetv2_kitti"),  # Table 3
    "distill/kitti_r101_shufflenetv2": ("pgd_r101_kitti_paper", "pgd_shufflenetv2_kitti"),
    "distill/kitti_regnetx32_regnetx08_half": ("pgd_regnetx32_kitti", "pgd_regnetx08_half_kitti"),
    "distill/kitti_regnetx32_regnetx08": ("pgd_regnetx32_kitti", "pgd_regnetx08_kitti"),
    "distill/kitti_regnetx32_mobilenetv2": ("pgd_regnetx32_kitti", "pgd_mobilenetv2_kitti"),
    "distill/kitti_regnetx32_shufflenetv2": ("pgd_regnetx32_kitti", "pgd_shufflenetv2_kitti"),
    "distill/kitti_dla60_dla34": ("smoke_dla60_kitti", "smoke_dla34_kitti"),  # Table 4
    "distill/nuscenes_r101_r18": ("pgd_r101_nuscenes_1x", "pgd_r18_nuscenes"),  # Table 6
    "distill/nuscenes_r101_r50": ("pgd_r101_nuscenes_1x", "pgd_r50_nuscenes"),
}
PAPER_KITTI = sorted(
    {name for names in TABLES.values() for name in names if name.startswith("pgd") and "kitti" in name}
)

each_pair = pytest.mark.parametrize("path", PAIRS, ids=name_of)


def path_of(name: str) -> Path:
    """The file of a detector's config."""
    return CONFIGS / name.split("_")[0].replace("fcos3d", "pgd") / f"{name}.yaml"


def detector(name: str) -> Any:
    return load_config(path_of(name))


def assert_schedule(
    cfg: Any, images: int, batch: int, lr: float, epochs: int, drops: tuple[int, ...]
) -> None:
    """Steps are those of whole epochs over ``images``, the last step of an epoch short where it must be."""
    solver = cfg.SOLVER
    assert (batch, lr) == (solver.IMS_PER_BATCH, solver.BASE_LR)
    epoch = -(-images // batch)
    assert epochs * epoch == solver.MAX_ITER
    assert tuple(drop * epoch for drop in drops) == tuple(solver.STEPS)
    assert (solver.LR_SCHEDULER_NAME, solver.GAMMA) == ("WarmupMultiStepLR", 0.1)
    assert solver.CHECKPOINT_PERIOD % epoch == 0


def test_every_detector_has_a_known_number_of_parameters() -> None:
    detectors = {name_of(p) for p in MONOCULAR if p not in PAIRS and p.parent.name != "demo_mono"}
    assert detectors == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    counted = sum(p.numel() for p in built(CONFIGS / f"{name}.yaml").parameters()) / 1e6
    assert round(counted, 2) == PARAMETERS[name]


def test_published_schedules() -> None:
    """Images per step, learning rate, epochs and drops of mmdetection3d's configs of PGD and FCOS3D."""
    assert_schedule(detector("pgd_r101_kitti"), KITTI_IMAGES, 12, 1e-3, 48, (32, 44))
    assert_schedule(detector("pgd_r101_nuscenes"), NUSCENES_IMAGES, 32, 4e-3, 24, (16, 22))
    assert_schedule(detector("pgd_r101_nuscenes_1x"), NUSCENES_IMAGES, 32, 4e-3, 12, (8, 11))
    assert_schedule(detector("fcos3d_r101_nuscenes"), NUSCENES_IMAGES, 16, 2e-3, 12, (8, 11))


@pytest.mark.parametrize("name", PAPER_KITTI)
def test_the_papers_schedule_on_kitti(name: str) -> None:
    """Section 4.2: 9 images per step, 48 epochs, images of 1242 x 375."""
    cfg = detector(name)
    assert_schedule(cfg, KITTI_IMAGES, 9, 1e-3, 48, (32, 44))
    assert cfg.INPUT.RESIZE_TRAIN == cfg.INPUT.RESIZE_TEST == [1242, 375]


@pytest.mark.parametrize("name", ["pgd_r18_nuscenes", "pgd_r50_nuscenes"])
def test_the_papers_schedule_on_nuscenes(name: str) -> None:
    """Section 4.2: 12 epochs, 4 images on each of 4 GPUs."""
    cfg = detector(name)
    assert_schedule(cfg, NUSCENES_IMAGES, 16, 4e-3, 12, (8, 11))


def test_the_papers_teacher_is_the_published_model_with_another_recipe() -> None:
    ours, published = detector("pgd_r101_kitti_paper"), detector("pgd_r101_kitti")
    assert ours.MODEL == published.MODEL and ours.DATASETS == published.DATASETS
    assert ours.SOLVER != published.SOLVER


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("pgd_r18_kitti", [64, 128, 256, 512]),
        ("pgd_regnetx08_kitti", [64, 128, 288, 672]),
        ("pgd_regnetx32_kitti", [96, 192, 432, 1008]),
        ("pgd_mobilenetv2_kitti", [24, 32, 96, 320]),
        ("pgd_shufflenetv2_kitti", [24, 116, 232, 464]),
    ],
)
def test_backbones_of_the_paper_give_four_levels(name: str, channels: list[int]) -> None:
    shapes = built(path_of(name)).feature_shapes()
    assert [shape.channels for shape in shapes.backbone.values()] == channels
    assert [shape.stride for shape in shapes.fpn] == [4, 8, 16, 32]


@pytest.mark.parametrize("backbone", ["r18", "regnetx08"])
def test_half_channels_are_half_in_neck_towers_and_branches(backbone: str) -> None:
    full, half = (detector(f"pgd_{backbone}{kind}_kitti").MODEL for kind in ("", "_half"))
    assert (full.FPN.OUT_CHANNELS, half.FPN.OUT_CHANNELS) == (256, 128)
    assert (full.FCOS3D.FEATURE_CHANNELS, half.FCOS3D.FEATURE_CHANNELS) == (256, 128)
    cfg = detector(f"pgd_{backbone}_half_kitti")
    head = pgd_arguments(cfg)["head"]
    for branch in (head.class_branch, *head.regressors.values(), *head.extra_branches.values()):
        assert [conv.conv.out_channels for conv in branch.convs] == [128]
    half.FPN = full.FPN
    half.FCOS3D.FEATURE_CHANNELS = 256
    assert half == full


def test_every_pair_of_the_paper_is_there() -> None:
    shipped = {name_of(path) for path in PAIRS if path.parent.name == "distill"}
    assert shipped == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_pair_is_that_of_the_paper(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    teacher_name, student_name = TABLES[name]
    distillation = load_config(path)
    assert Path(distillation.DISTILL.TEACHER.CONFIG).stem == teacher_name
    student, teacher = pair(path)
    plain_student, plain_teacher = detector(student_name), detector(teacher_name)
    assert student.MODEL == plain_student.MODEL and teacher.MODEL == plain_teacher.MODEL
    for section in ("SOLVER", "INPUT", "DATASETS", "TEST"):  # distilled and baseline differ in nothing else
        assert student[section] == plain_student[section]


@each_pair
def test_student_can_be_distilled(path: Path) -> None:
    student_cfg, teacher_cfg = pair(path)
    assert class_names(student_cfg) == class_names(teacher_cfg)
    student, teacher = on_meta(student_cfg), on_meta(teacher_cfg)
    shapes = student.feature_shapes(), teacher.feature_shapes()
    ours, theirs = ([level.stride for level in shape.fpn] for shape in shapes)
    assert ours == theirs
    distill = load_config(path).DISTILL
    methods = {name: DISTILL_REGISTRY.get(name) for name in distill.METHODS}
    if path.stem != "recommended":
        assert set(methods) == {"PerspectiveFeature", "DepthGuidedPrediction"}
        feature, prediction = (method(distill[method.node], *shapes) for method in methods.values())
        widths = [(adapter.in_channels, adapter.out_channels) for adapter in feature.adapters]
        assert widths == [(s.channels, t.channels) for s, t in zip(shapes[0].fpn, shapes[1].fpn, strict=True)]
        assert not list(prediction.parameters())
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())


@each_pair
def test_method_is_that_of_the_paper(path: Path) -> None:
    distill = load_config(path).DISTILL
    feature, prediction = distill.PERSPECTIVE_FEATURE, distill.DEPTH_GUIDED
    assert feature.PERSPECTIVE and feature.LEVELS == [] and feature.CENTER == [0.5, 0.5]
    assert (feature.AMPLITUDE, feature.SIGMA) == (0.3, [0.7, 0.7])  # section 4.3.1
    assert (prediction.DISTANCE, prediction.DEPTH_ATTENTION, prediction.RHO) == ("l2", True, "exp")  # Table 1
    assert distill.INHERIT.MODE == "off"


@pytest.mark.parametrize(
    ("front", "behind"),
    [
        ("distill_pgd_r18", "distill/kitti_r101_r18_half"),
        ("distill_pgd_r18_nuscenes", "distill/nuscenes_r101_r18"),
    ],
)
def test_configs_of_the_front_page_are_pairs_of_the_paper(front: str, behind: str) -> None:
    ours, theirs = config(f"{front}.yaml"), config(f"{behind}.yaml")
    assert Path(ours.DISTILL.TEACHER.CONFIG).resolve() == Path(theirs.DISTILL.TEACHER.CONFIG).resolve()
    ours.DISTILL.TEACHER.CONFIG, ours.OUTPUT_DIR = theirs.DISTILL.TEACHER.CONFIG, theirs.OUTPUT_DIR
    assert ours == theirs
