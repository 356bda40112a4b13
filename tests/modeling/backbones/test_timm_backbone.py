from pathlib import Path

import pytest
import timm
import torch

from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.modeling.backbones.timm_backbone import TimmBackbone


@pytest.mark.parametrize(
    ("name", "indices", "expected"),
    [("mobilenetv3_small_050", (2, 3), ["res3", "res4"]), ("dla46_c", (3, 5), ["res3", "res5"])],
)
def test_features_are_named_by_stride(name: str, indices: tuple[int, ...], expected: list[str]):
    backbone = TimmBackbone(name, out_indices=indices).eval()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert list(features) == expected
    for key, feature in features.items():
        spec = backbone.output_shape()[key]
        assert feature.shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_weights_of_the_classifier_model_fill_the_backbone(tmp_path: Path, name: str):
    torch.manual_seed(0)
    full = timm.create_model(name, pretrained=False).eval()
    path = tmp_path / "timm.pth"
    torch.save(full.state_dict(), path)
    torch.manual_seed(1)
    backbone = TimmBackbone(name, out_indices=(3,), weights=str(path)).eval()
    reference = timm.create_model(name, features_only=True, out_indices=(3,)).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = full.forward_intermediates(x, indices=[3], norm=False, intermediates_only=True)[0]
    torch.testing.assert_close(next(iter(backbone(x).values())), expected)
    assert not torch.allclose(reference(x)[0], expected)


def test_detector_with_a_timm_backbone_trains(tiny_cfg: CfgNode, make_sample):
    tiny_cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.OUT_INDICES = "mobilenetv3_small_050", [2, 3]
    tiny_cfg.MODEL.BACKBONE.NORM = "FrozenStatsBN"
    model = build_model(tiny_cfg).train()
    norms = [m for m in model.image_backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    sum(model([make_sample(1)]).values()).backward()
    backbone = model.image_backbone
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())
    assert any(not p.requires_grad for p in backbone.parameters())  # what lies beyond the last feature


def test_a_model_of_ones_own_without_default_settings_is_an_error(monkeypatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)  # as of one that was registered so
    with pytest.raises(ValueError, match=r"'mobilenetv3_small_050' has no default settings.* default_cfgs"):
        TimmBackbone("mobilenetv3_small_050", out_indices=(3,))


def test_bad_names_and_freezing_are_errors(tiny_cfg: CfgNode):
    with pytest.raises(ValueError, match="no model 'resnet_of_mine'"):
        TimmBackbone("resnet_of_mine", out_indices=(3,))
    tiny_cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(ValueError, match="FREEZE_AT is 2"):
        build_model(tiny_cfg)


def test_group_normalisation_takes_the_place_of_batch_normalisation():
    backbone = TimmBackbone("dla34", out_indices=(2, 3, 4, 5), norm="GN").train()
    norms = {name: m for name, m in backbone.named_modules() if "Norm" in type(m).__name__}
    assert {type(m) for m in norms.values()} == {torch.nn.GroupNorm}
    assert {(m.num_groups, m.num_channels) for m in norms.values()} >= {(16, 16), (32, 32), (32, 512)}
    assert all(p.requires_grad for p in backbone.parameters())
    assert {name: spec.channels for name, spec in backbone.output_shape().items()} == {
        "res2": 64,
        "res3": 128,
        "res4": 256,
        "res5": 512,
    }
    with pytest.raises(ValueError, match="NORM is 'LN'"):
        TimmBackbone("dla34", out_indices=(2,), norm="LN")
    with pytest.raises(ValueError, match="BatchNormAct2d is more than"):
        TimmBackbone("mobilenetv3_small_050", out_indices=(2,), norm="GN")


def test_group_normalised_backbone_starts_from_a_batch_normalised_file(tmp_path: Path):
    full = timm.create_model("dla60", pretrained=False)
    state = full.state_dict()
    # The published files hold projections that no forward pass reads.
    state["level4.tree1.project.0.weight"] = torch.zeros(512, 256, 1, 1)
    path = tmp_path / "dla60.pth"
    torch.save(state, path)
    backbone = TimmBackbone("dla60", out_indices=(2, 3, 4, 5), norm="GN", weights=str(path))
    own = backbone.body.state_dict()
    assert not any("running" in key for key in own)
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    del state["level2.tree1.conv1.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"missing from it: level2\.tree1\.conv1\.weight"):
        TimmBackbone("dla60", out_indices=(2, 3, 4, 5), norm="GN", weights=str(path))
