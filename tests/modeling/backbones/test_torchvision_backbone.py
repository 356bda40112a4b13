"""ShuffleNetV2 and others of torchvision as image backbones."""

import pytest
import torch
from torchvision.models import shufflenet_v2_x1_0

from bevkd2.checkpoint import StateDictMismatchError, save_file
from bevkd2.config import get_cfg
from bevkd2.d2 import build_backbone
from bevkd2.modeling.backbones.torchvision_backbone import TorchvisionBackbone

NODES = ["maxpool", "stage2", "stage3", "stage4"]


def test_shufflenet_gives_the_pyramid_of_its_stages():
    backbone = TorchvisionBackbone("shufflenet_v2_x1_0", nodes=NODES).eval()
    shapes = {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
    assert shapes == {"res2": (24, 4), "res3": (116, 8), "res4": (232, 16), "res5": (464, 32)}
    features = backbone(torch.randn(2, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "res2": (2, 24, 16, 24), "res3": (2, 116, 8, 12), "res4": (2, 232, 4, 6), "res5": (2, 464, 2, 3),
    }  # fmt: skip


def test_every_parameter_is_reached_and_none_of_the_classifier_is_kept():
    backbone = TorchvisionBackbone("shufflenet_v2_x1_0", nodes=NODES, norm="BN").train()
    assert not [name for name, _ in backbone.named_parameters() if ".fc." in name or ".conv5." in name]
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_weights_of_torchvision_s_own_file_are_loaded_and_the_output_is_its_own(tmp_path):
    model = shufflenet_v2_x1_0(weights=None).eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.dtype.is_floating_point:
                buffer.uniform_(0.5, 1.5)
    save_file(model.state_dict(), tmp_path / "shufflenet.safetensors")
    backbone = TorchvisionBackbone(
        "shufflenet_v2_x1_0", nodes=NODES, weights=str(tmp_path / "shufflenet.safetensors")
    )
    x = torch.randn(1, 3, 64, 64)
    expected = model.stage4(model.stage3(model.stage2(model.maxpool(model.conv1(x)))))
    torch.testing.assert_close(backbone.train()(x)["res5"], expected)  # frozen statistics in training too
    state = model.state_dict()
    del state["stage2.0.branch1.0.weight"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(StateDictMismatchError, match=r"stage2\.0\.branch1\.0\.weight"):
        TorchvisionBackbone("shufflenet_v2_x1_0", nodes=NODES, weights=str(tmp_path / "broken.safetensors"))


def test_from_config():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_torchvision_backbone", 0
    cfg.MODEL.TORCHVISION.NAME, cfg.MODEL.TORCHVISION.NODES = "shufflenet_v2_x0_5", NODES[1:]
    assert list(build_backbone(cfg).output_shape()) == ["res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    with pytest.raises(ValueError, match="FREEZE_AT is 1"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("name", "nodes", "norm", "message"),
    [
        ("shufflenet_v9", NODES, "BN", "no classification model 'shufflenet_v9'"),
        ("shufflenet_v2_x1_0", ["stage7"], "BN", r"no \['stage7'\]; its modules are conv1, maxpool, stage2"),
        ("shufflenet_v2_x1_0", ["stage3", "stage2"], "BN", r"strides \[16, 8\]"),
        ("shufflenet_v2_x1_0", NODES, "GN", "BACKBONE.NORM is 'GN', expected FrozenStatsBN or BN"),
    ],
)
def test_invalid_values_are_named(name, nodes, norm, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionBackbone(name, nodes=nodes, norm=norm)
