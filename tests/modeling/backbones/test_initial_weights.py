import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from bevkd2.checkpoint import StateDictMismatchError
from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import build_backbone
from bevkd2.modeling.backbones.initial_weights import load_backbone_weights
from bevkd2.modeling.backbones.resnet import ResNet

BASIC = {"depth": 18, "stem_channels": 64, "res2_channels": 64}


@pytest.fixture(scope="module")
def torchvision_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


def resnet18_cfg(path: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.BACKBONE.WEIGHTS = str(path)
    return cfg


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_file_fills_the_backbone(tmp_path: Path, torchvision_state: dict, suffix: str):
    path = tmp_path / f"resnet18{suffix}"
    torch.save(torchvision_state, path) if suffix == ".pth" else safetensors.torch.save_file(
        torchvision_state, path
    )
    backbone = build_backbone(resnet18_cfg(path))
    assert torch.equal(backbone.layer2[1].conv2.weight, torchvision_state["layer2.1.conv2.weight"])


def test_detector_file_gives_its_backbone(tmp_path: Path, torchvision_state: dict):
    state = {f"img_backbone.{k}": v for k, v in torchvision_state.items() if not k.startswith("fc.")}
    path = tmp_path / "detector.pth"
    torch.save({"meta": {}, "state_dict": {**state, "img_neck.x": torch.zeros(1)}}, path)
    backbone = ResNet(**BASIC)
    load_backbone_weights(backbone, str(path))
    assert torch.equal(backbone.conv1.weight, torchvision_state["conv1.weight"])


def test_mismatches_are_named(tmp_path: Path, torchvision_state: dict):
    path = tmp_path / "resnet18.pth"
    with pytest.raises(FileNotFoundError, match=r"resnet18\.pth"):
        load_backbone_weights(ResNet(**BASIC), str(path))
    torch.save({k: v for k, v in torchvision_state.items() if k != "layer3.0.conv1.weight"}, path)
    with pytest.raises(StateDictMismatchError, match=r"BACKBONE\.WEIGHTS.*missing.*layer3\.0\.conv1\.weight"):
        load_backbone_weights(ResNet(**BASIC), str(path))
    torch.save(torchvision_state, path)
    with pytest.raises(StateDictMismatchError, match=r"48 keys unknown to the model: layer1\.1\."):
        load_backbone_weights(ResNet(depth=10, stem_channels=64, res2_channels=64), str(path))
    with pytest.raises(
        StateDictMismatchError, match=r"conv1\.weight \(64, 3, 7, 7\) instead of \(8, 3, 7, 7\)"
    ):
        load_backbone_weights(ResNet(depth=18, stem_channels=8, res2_channels=64), str(path))


def test_deformable_backbone_from_a_plain_file_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    options = {"depth": 50, "stem_channels": 8, "res2_channels": 16}
    path = tmp_path / "plain.pth"
    torch.save(ResNet(**options).state_dict(), path)
    backbone = ResNet(**options, deform_on_per_stage=(False, False, False, True))
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(backbone, str(path))
    assert "no deformable offsets: 6 tensors start at zero" in caplog.text
    partial = backbone.state_dict()
    del partial["layer4.1.conv2.conv_offset.bias"]
    torch.save(partial, path)
    with pytest.raises(StateDictMismatchError, match=r"layer4\.1\.conv2\.conv_offset\.bias"):
        load_backbone_weights(backbone, str(path))
