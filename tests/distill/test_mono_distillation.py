"""Distillation of monocular detectors from the data on disk to the student's checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bevkd2.distill  # noqa: F401  (registers)
from bevkd2.checkpoint import load_file, load_strict, save_file
from bevkd2.config import CfgNode, load_config, stored_classes
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data.loader import build_train_loader
from bevkd2.distill import Distiller, resolve_teacher, student_config
from bevkd2.engine import build_trainer, train
from tests.data.nuscenes_fixture import VERSION, FixtureWorld
from tests.modeling.mono.pgd_model import small_cfg

DISTILLED = {"loss_distill_perspective_feature", "loss_distill_depth_guided"}
Make = Callable[..., CfgNode]


def smoke_cfg(width: int) -> CfgNode:
    """A ResNet-10 in place of DLA; about every second image is shifted and scaled."""
    cfg = small_cfg("SMOKE")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SMOKE.FEATURE_CHANNELS, cfg.MODEL.DLA_UP.OUT_CHANNELS = width, width
    cfg.INPUT.AFFINE.ENABLED, cfg.INPUT.AFFINE.SIZE, cfg.INPUT.AFFINE.PROB = True, [320, 96], 0.5
    return cfg


def model_cfg(case: str, width: int) -> CfgNode:
    """The plain detector of a case."""
    return smoke_cfg(width) if case == "SMOKE" else small_cfg("PGD", width, nuscenes=case == "nuScenes")


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """Makes the config of a distillation, its teacher's YAML file and weights written to disk."""

    def make(case: str, output: str = "output", width: int = 8, **perspective: Any) -> CfgNode:
        teacher = model_cfg(case, 16)
        torch.manual_seed(1)
        state = build_model(teacher).state_dict()
        save_file({"model": state, "classes": list(stored_classes(teacher))}, tmp_path / "teacher.pth")
        (tmp_path / "teacher.yaml").write_text(teacher.dump())
        cfg = model_cfg(case, width)
        cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Distiller"])
        cfg.DISTILL.TEACHER.CONFIG = str(tmp_path / "teacher.yaml")
        cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
        cfg.DISTILL.METHODS, cfg.DISTILL.FACTOR = ["PerspectiveFeature", "DepthGuidedPrediction"], 1.0
        cfg.DISTILL.PERSPECTIVE_FEATURE.OCCLUSION = "near_boxes"
        cfg.DISTILL.PERSPECTIVE_FEATURE.update(perspective)
        cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / output), 5
        solver = cfg.SOLVER
        solver.MAX_ITER, solver.CHECKPOINT_PERIOD, solver.IMS_PER_BATCH, solver.BASE_LR = 2, 1, 2, 1e-3
        solver.WARMUP_ITERS, cfg.TEST.PRINT_PERIOD = 1, 1
        cfg.DATALOADER.NUM_WORKERS = 0
        if case == "nuScenes":
            world: FixtureWorld = request.getfixturevalue("fixture_world")
            cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = str(world.root), VERSION
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("both",), ("both",)
        else:
            cfg.DATASETS.ROOT = str(request.getfixturevalue("kitti_world"))
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
        resolve_teacher(cfg)
        return cfg

    return make


def distiller(cfg: CfgNode) -> Distiller:
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model, Distiller)
    return model


def no_score(cfg: CfgNode, model: torch.nn.Module, **kwargs: Any) -> dict[str, Any]:
    return {}


def copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", ["PGD", "SMOKE", "nuScenes"])
def test_a_student_is_trained_stored_resumed_and_used_alone(make: Make, case: str) -> None:
    cfg = make(case)
    model = distiller(cfg)
    teacher, student = copied(model.teacher), copied(model.student)
    train(cfg, model, evaluate=no_score)
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    steps = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in steps] == [0, 1]
    for row in steps:
        losses = {name: value for name, value in row.items() if "loss" in name}
        assert set(losses) >= DISTILLED and all(math.isfinite(value) for value in losses.values())
        assert row["loss_distill_perspective_feature"] > 0 and row["loss_distill_depth_guided"] > 0
        assert ("loss_velocity" in losses) == ("loss_attribute" in losses) == (case == "nuScenes")
    assert equal(teacher, copied(model.teacher)) and not model.teacher.training
    assert not equal(student, copied(model.student))

    content = load_file(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    plain = build_model(student_config(cfg)).eval()
    load_strict(plain, content["model"], "model_final.pth")
    assert content["classes"] == list(stored_classes(cfg))
    batch = next(iter(build_train_loader(cfg)))
    for alone, inside in zip(plain(batch), model.eval()(batch), strict=True):
        assert torch.equal(alone["boxes"].tensor, inside["boxes"].tensor)
        assert torch.equal(alone["scores"], inside["scores"])

    stopped = make(case, "stopped")
    build_trainer(stopped, distiller(stopped), evaluate=no_score).train(0, 1)
    resumed = distiller(stopped)
    train(stopped, resumed, resume=True, evaluate=no_score)
    assert equal(copied(model), copied(resumed))


@pytest.mark.parametrize("case", ["PGD", "SMOKE", "nuScenes"])
def test_losses_of_a_student_equal_to_its_teacher_are_zero(make: Make, case: str) -> None:
    cfg = make(case, width=16, ADAPTER="none")
    model = distiller(cfg).train()
    batch = next(iter(build_train_loader(cfg)))
    with EventStorage():
        different = model(batch)
        model.student.load_state_dict(model.teacher.state_dict())
        same = model(batch)
    assert min(float(different[name].detach()) for name in DISTILLED) > 0
    assert max(float(same[name].detach()) for name in DISTILLED) == 0


@pytest.mark.parametrize("case", ["PGD", "SMOKE", "nuScenes"])
def test_images_without_objects_reach_every_parameter(make: Make, case: str) -> None:
    """Adapters too, as DistributedDataParallel expects."""
    cfg = make(case)
    model = distiller(cfg).train()
    batch = next(iter(build_train_loader(cfg)))
    for sample in batch:
        for key in {"boxes", "labels", "boxes2d", "attributes"} & set(sample):
            sample[key] = sample[key][:0]
    with EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_autocast_changes_the_losses_little(make: Make) -> None:
    cfg = make("PGD")
    model = distiller(cfg).train()
    batch = next(iter(build_train_loader(cfg)))
    with EventStorage():
        exact = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(batch)
    for name in DISTILLED:
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], exact[name], rtol=0.05, atol=1e-3)


def test_classes_in_another_order_are_refused(make: Make, tmp_path: Path) -> None:
    cfg = make("PGD")
    with pytest.raises(ValueError, match="both need the same names in the same order"):
        cfg.DATASETS.CLASSES = ["Car", "Pedestrian", "Cyclist"]
        resolve_teacher(cfg)
    content = load_file(tmp_path / "teacher.pth")
    save_file({**content, "classes": ["Car", "Pedestrian", "Cyclist"]}, tmp_path / "teacher.pth")
    cfg.DATASETS.CLASSES = []
    with pytest.raises(ValueError, match="was trained with the classes Car, Pedestrian, Cyclist"):
        build_model(cfg)
    meta = {"dataset_meta": {"classes": ["Car", "Pedestrian", "Cyclist"]}}
    torch.save({"model": content["model"], "meta": meta}, tmp_path / "teacher.pth")
    with pytest.raises(ValueError, match=r"\(meta\.dataset_meta\.classes\) was trained with the classes Car"):
        build_model(cfg)


def test_a_dumped_config_needs_no_second_file(make: Make, tmp_path: Path) -> None:
    cfg = make("PGD")
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    (tmp_path / "teacher.yaml").unlink()
    again = load_config(tmp_path / "dumped.yaml")
    resolve_teacher(again)
    assert equal(copied(distiller(again).teacher), copied(distiller(cfg).teacher))
