import pytest
import torch
import torchvision

from bevkd2.modeling.backbones.layers import DeformConv2d
from bevkd2.modeling.backbones.resnet import ResNet

WIDE = {"stem_channels": 64, "res2_channels": 256}
BASIC = {"stem_channels": 64, "res2_channels": 64}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"depth": 18, **BASIC}),
        ("resnet34", {"depth": 34, **BASIC}),
        ("resnet50", {"depth": 50, **WIDE}),
        ("resnet101", {"depth": 101, **WIDE}),
        ("resnet152", {"depth": 152, **WIDE}),
        ("resnext101_32x8d", {"depth": 101, "groups": 32, "width_per_group": 8, **WIDE}),
    ],
)
def test_keys_and_shapes_are_torchvisions(name: str, options: dict):
    with torch.device("meta"):
        ours = ResNet(**options).state_dict()
        theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_features_equal_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    backbone = ResNet(depth=18, **BASIC, out_features=("stem", "res2", "res5")).eval()
    backbone.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 64, 96)
    features = backbone(x)
    y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    torch.testing.assert_close(features["stem"], y)
    y = theirs.layer1(y)
    torch.testing.assert_close(features["res2"], y)
    torch.testing.assert_close(features["res5"], theirs.layer4(theirs.layer3(theirs.layer2(y))))
    for name, feature in features.items():
        spec = backbone.output_shape()[name]
        assert feature.shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


def small(**options) -> ResNet:
    return ResNet(**{"depth": 50, "stem_channels": 8, "res2_channels": 16, "width_per_group": 64, **options})


def test_caffe_stride_sits_in_the_first_convolution():
    strides = {"caffe": small(stride_in_1x1=True), "torch": small()}
    block = {name: backbone.layer2[0] for name, backbone in strides.items()}
    assert (block["caffe"].conv1.stride, block["caffe"].conv2.stride) == ((2, 2), (1, 1))
    assert (block["torch"].conv1.stride, block["torch"].conv2.stride) == ((1, 1), (2, 2))


def test_deformable_stages_start_as_plain_halves_and_learn():
    backbone = small(deform_on_per_stage=(False, False, True, True), stride_in_1x1=True, norm="GN")
    assert not isinstance(backbone.layer2[0].conv2, DeformConv2d)
    convs = [block.conv2 for block in [*backbone.layer3, *backbone.layer4]]
    assert all(isinstance(conv, DeformConv2d) for conv in convs)
    conv, x = convs[0], torch.randn(2, convs[0].in_channels, 7, 9)
    plain = torch.nn.functional.conv2d(x, conv.weight, stride=conv.stride, padding=1)
    torch.testing.assert_close(conv(x), plain / 2, atol=1e-5, rtol=1e-4)
    assert backbone.state_dict()["layer3.0.conv2.conv_offset.weight"].shape[0] == 27
    backbone(torch.randn(1, 3, 64, 64))["res5"].square().mean().backward()
    assert conv.conv_offset.weight.grad.abs().sum() > 0


def test_offsets_shift_the_sampled_pixels():
    """An offset of one pixel to the right reads the image shifted by one; y comes before x."""
    conv = DeformConv2d(1, 1)
    x = torch.randn(1, 1, 6, 8)
    plain = torch.nn.functional.conv2d(x[..., 1:], conv.weight, padding=1)
    with torch.no_grad():
        conv.conv_offset.bias[1:18:2] = 1.0
        conv.conv_offset.bias[18:] = 30.0  # modulation 1
    torch.testing.assert_close(conv(x)[..., 1:-2, 1:-3], plain[..., 1:-2, 1:-2], atol=1e-5, rtol=1e-4)


def test_freezing_and_norms():
    backbone = small(norm="BN", freeze_at=2).train()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in backbone.named_parameters() if name.startswith(("conv1", "bn1", "layer1"))
    }
    assert not backbone.bn1.training
    assert not backbone.layer1[0].bn1.training
    assert backbone.layer2[0].bn1.training
    running = small(norm="FrozenStatsBN").train()
    assert not running.layer4[0].bn1.training
    assert running.layer4[0].bn1.weight.requires_grad
    before = running.bn1.running_mean.clone()
    running(torch.randn(1, 3, 32, 32) + 5)
    assert torch.equal(running.bn1.running_mean, before)


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = small(norm="GN", checkpointing=checkpointing).train()
        backbone(torch.ones(1, 3, 64, 64))["res5"].sum().backward()
        grads.append(backbone.conv1.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_later_stages_are_not_built():
    backbone = ResNet(depth=10, stem_channels=8, res2_channels=8, out_features=["res3"])
    assert not hasattr(backbone, "layer3")
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 42}, "DEPTH is 42"),
        ({"depth": 50, "out_features": ["res7"]}, "res7"),
        ({"depth": 18, "groups": 32}, "basic blocks"),
        ({"depth": 18, "deform_on_per_stage": (False, False, False, True)}, "basic blocks"),
    ],
)
def test_impossible_backbones_are_errors(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)
