"""Small pairs of teacher and student of every detector family, to train a method on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bevkd2.distill  # noqa: F401  (registers)
from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import META_ARCH_REGISTRY, EventStorage
from bevkd2.distill import DISTILL_REGISTRY, Distiller
from bevkd2.distill.teacher_cache import TeacherCache
from tests.distill.frames import make_frames, tiny_bevformer_cfg
from tests.modeling.mono.pgd_model import make_image, small_cfg

DETECTORS = ("BEVFormer", "PGD", "SMOKE")


def detector_cfg(name: str, width: int) -> CfgNode:
    """The config of a detector whose neck has ``width`` channels."""
    if name == "BEVFormer":
        cfg = tiny_bevformer_cfg()
        cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.BEVFORMER.FFN_DIM = width, width
        return cfg
    cfg = small_cfg(name, width)
    if name == "SMOKE":
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.SMOKE.FEATURE_CHANNELS, cfg.MODEL.DLA_UP.OUT_CHANNELS = width, width
    return cfg


def build_detector(name: str, width: int, seed: int, *options: Any) -> Any:
    """A detector with random weights; ``options`` are KEY, VALUE, ... of its config."""
    cfg = detector_cfg(name, width)
    cfg.merge_from_list(list(options))
    torch.manual_seed(seed)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".attention_weights." in key:  # zero at the start, which makes all attention uniform
                parameter.normal_()
    return model


def method_node(method: str, **settings: Any) -> CfgNode:
    """The config node of a method, its defaults overridden."""
    node = get_cfg().DISTILL[DISTILL_REGISTRY.get(method).node]
    for key, value in settings.items():
        assert key in node, f"{method} has no key {key}"
        node[key] = value
    return node


def build_pair(
    detector: str,
    method: str,
    *,
    student_width: int = 8,
    teacher_width: int = 16,
    same: bool = False,
    options: Sequence[Any] = (),
    weight: float = 1.0,
    cache: TeacherCache | None = None,
    **settings: Any,
) -> Distiller:
    """A Distiller with one method of factor 1.

    Args:
        detector: of ``DETECTORS``.
        method: its name in the registry.
        student_width: channels of the student's neck.
        teacher_width: of the teacher's.
        same: the student is a copy of the teacher.
        options: KEY, VALUE, ... of both detectors' configs.
        weight: the method's.
        cache: of the teacher's knowledge.
        **settings: keys of the method's node.
    """
    teacher = build_detector(detector, teacher_width, 1, *options)
    _make_certain(teacher)
    student = build_detector(detector, teacher_width if same else student_width, 2, *options)
    if same:
        student.load_state_dict(teacher.state_dict())
    node = method_node(method, **settings)
    torch.manual_seed(3)
    built = DISTILL_REGISTRY.get(method)(node, student.feature_shapes(), teacher.feature_shapes())
    return Distiller(
        student=student,
        teacher=teacher,
        methods={method: built},
        weights={method: weight},
        factor=1.0,
        teacher_cache=cache,
    )


def _make_certain(teacher: Any) -> None:
    """Gives it class probabilities other than the initial ones, which are all nearly 0."""
    for name, parameter in teacher.named_parameters():
        if name.endswith("class_branch.out.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith("regressors.boxes2d.out.bias"):  # boxes of no extent are no instances of GID
            torch.nn.init.ones_(parameter)
        if "decoder.class_branches." in name and name.endswith(".6.bias"):
            torch.nn.init.zeros_(parameter)


def make_batch(detector: str, *seeds: int) -> list[dict[str, Any]]:
    """Training samples, one per seed."""
    return make_frames(*seeds) if detector == "BEVFormer" else [make_image(seed) for seed in seeds]


def distill_losses(model: Distiller, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The losses of the methods alone, by name, of a forward pass in training mode."""
    with EventStorage():
        losses = model.train()(batch)
    return {key: value for key, value in losses.items() if key.startswith("loss_distill_")}


def train(
    model: Distiller, batch: list[dict[str, Any]], steps: int, lr: float, enough: float = 0.0
) -> list[float]:
    """Trains on one batch with all losses; returns the sum of the methods' losses of every step.

    Args:
        model: the Distiller.
        batch: the samples of every step.
        steps: at most.
        lr: of AdamW.
        enough: ends the training once the last three losses are below this share of the first.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    history: list[float] = []
    for step in range(steps):
        model.set_progress(step, steps)
        with EventStorage():
            losses = model.train()(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(sum(value.item() for key, value in losses.items() if key.startswith("loss_distill_")))
        if len(history) > 3 and max(history[-3:]) < enough * history[0]:
            break
    return history
