"""Every shipped student exports whole, at a reduced size; benchmarks/export_sizes.py does so at full size.

BEVKD2_ALL_STUDENTS=1 python -m pytest tests/export/test_students.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.export_sizes import model_config, shipped_students, what_decides_the_graph
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.export import export_detector
from bevkd2.modeling import Detector
from bevkd2.modeling.backbones import resnet
from bevkd2.modeling.backbones.layers import DeformConv2d
from tests.configs.shipped import CONFIGS
from tests.export.graphs import assert_graph_equals_the_form, with_past

SIZE = (128, 192)  # the coarsest stride is 128, and normalisation over one cell is an error
BLOCKS = (1, 2, 1, 1)  # of ResNets: a block of every kind, with and without a shortcut's convolution
QUICK = ("bevformer/bevformer_small", "pgd/fcos3d_r101_nuscenes", "distill/kitti_dla60_dla34")
"""Multi-view; deformable convolution, velocity and attributes; SMOKE."""
MORE = ["pgd/fcos3d_r101_nuscenes"]  # a teacher, and the only FCOS3D


def reduced(name: str) -> CfgNode:
    """A student with all its parts, but fewer channels, layers, cells and queries."""
    cfg = model_config(load_config(CONFIGS / f"{name}.yaml"))
    model, bev = cfg.MODEL, cfg.MODEL.BEVFORMER
    model.BACKBONE.CHECKPOINTING = False  # of the backward pass alone
    model.RESNETS.STEM_OUT_CHANNELS = 8
    model.RESNETS.RES2_OUT_CHANNELS = 8 if model.RESNETS.DEPTH in resnet.BASIC_DEPTHS else 32
    model.FPN.OUT_CHANNELS = model.FCOS3D.FEATURE_CHANNELS = model.SMOKE.FEATURE_CHANNELS = 16
    model.FCOS3D.TEST.CANDIDATES_PER_LEVEL = 20
    bev.BEV_SHAPE, bev.NUM_QUERIES, bev.FFN_DIM = [6, 8], 30, 32
    bev.ENCODER_LAYERS, bev.DECODER_LAYERS = 1, 2
    cfg.INPUT.IMAGE_SCALE, cfg.INPUT.RESIZE_TEST = 1.0, []  # SIZE is that of the resized images
    return cfg


def different_students() -> list[str]:
    """One name for each graph: reduced, many students are the same."""
    names = [names[0] for names in shipped_students()] + MORE
    return list({what_decides_the_graph(reduced(name)): name for name in reversed(names)}.values())[::-1]


def with_random_weights(cfg: CfgNode) -> Detector[Any, Any, Any]:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, DeformConv2d):  # its offsets are 0 at the start
            torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
            torch.nn.init.normal_(module.conv_offset.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("class_branch.out.weight"):  # else rounding decides which locations are the best
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def chosen_students() -> list[Any]:
    """All; those that ``QUICK`` does not name are skipped unless ``BEVKD2_ALL_STUDENTS`` is set: minutes."""
    rest = pytest.mark.skipif(
        "BEVKD2_ALL_STUDENTS" not in os.environ, reason="takes long: set BEVKD2_ALL_STUDENTS=1 to run it"
    )
    return [pytest.param(name, marks=() if name in QUICK else rest) for name in different_students()]


@pytest.mark.parametrize("name", chosen_students())
def test_a_student_in_onnx_equals_that_in_torch(
    onnx_packages: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resnet, "BLOCKS", dict.fromkeys(resnet.BLOCKS, BLOCKS))
    cfg, path = reduced(name), tmp_path / "student.onnx"
    model = with_random_weights(cfg)
    export_detector(cfg, model, [path], image_size=SIZE)
    form = model.deployable(SIZE)
    for batch in (1, 3):
        inputs = list(form.examples(batch))
        if form.kind == "multi_view":
            inputs = with_past(inputs)
        else:  # images of different sizes, all but the first one smaller than the graph's
            inputs[1] = inputs[1] - torch.arange(batch)[:, None]
        assert_graph_equals_the_form(path, model, inputs)


BACKBONES = {
    "ResNet-18": "distill/nuscenes_r101_r18",
    "DLA-34": "distill/kitti_dla60_dla34",
    "MobileNetV2": "distill/kitti_r101_mobilenetv2",
    "ShuffleNetV2": "distill/kitti_r101_shufflenetv2",
    "RegNetX-800MF": "distill/kitti_regnetx32_regnetx08",
}
"""Backbone of a student -> a config."""


class ImagePart(nn.Module):
    """Backbone and neck."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.neck = detector.image_backbone, detector.neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(images)))


@pytest.mark.parametrize("name", BACKBONES.values(), ids=BACKBONES)
def test_backbones_are_traced_with_a_free_batch(name: str) -> None:
    """The program has operators of torch and torchvision alone."""
    part = ImagePart(build_model(model_config(load_config(CONFIGS / f"{name}.yaml")))).eval()
    images, batch = torch.rand(3, 3, 64, 96), torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(part, (images,), dynamic_shapes=({0: batch},))
        expected, outputs = part(images[:2]), program.module()(images[:2])
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    others = {
        name for name in targets if not name.startswith(("aten.", "torchvision.", "<built-in function"))
    }
    assert not others
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_what_is_exported_has_every_part() -> None:
    """All detectors and backbones of the shipped students, deformable convolution, attributes, velocity."""
    models = [reduced(name).MODEL for name in different_students()]
    assert {model.META_ARCHITECTURE for model in models} == {"BEVFormer", "FCOS3D", "PGD", "SMOKE"}
    assert {model.TIMM.NAME for model in models} == {"", "dla34", "mobilenetv2_100", "regnetx_008"}
    assert {model.TORCHVISION.NAME for model in models} == {"", "shufflenet_v2_x1_0"}
    deformable = [model.META_ARCHITECTURE for model in models if any(model.RESNETS.DEFORM_ON_PER_STAGE)]
    assert set(deformable) == {"BEVFormer", "FCOS3D"}
    moving = [model.META_ARCHITECTURE for model in models if model.FCOS3D.VELOCITY]
    assert sorted(moving) == ["FCOS3D", "PGD", "PGD"]
    assert all(model.FCOS3D.ATTRIBUTES == 9 for model in models if model.FCOS3D.VELOCITY)
