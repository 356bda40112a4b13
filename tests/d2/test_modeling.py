import pytest
import torch

from bevkd2.d2 import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    CfgNode,
    Registry,
    ShapeSpec,
    build_backbone,
    build_model,
)


@META_ARCH_REGISTRY.register()
class D2TestModel(torch.nn.Linear):
    def __init__(self, cfg):
        super().__init__(cfg.WIDTH, 1)


@BACKBONE_REGISTRY.register()
class D2TestBackbone(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.input_shape = input_shape
        self._out_features = ["res5"]
        self._out_feature_channels = {"res2": 4, "res5": 8}
        self._out_feature_strides = {"res2": 4, "res5": 32}

    def forward(self, x):
        return {"res5": x}


@BACKBONE_REGISTRY.register()
def build_d2_test_not_a_backbone(cfg, input_shape):
    return torch.nn.Identity()


def config(backbone: str = "D2TestBackbone") -> CfgNode:
    model = {
        "META_ARCHITECTURE": "D2TestModel",
        "DEVICE": "cpu",
        "PIXEL_MEAN": [1.0, 2.0, 3.0],
        "BACKBONE": {"NAME": backbone},
    }
    return CfgNode({"WIDTH": 5, "MODEL": model})


def test_build_model():
    model = build_model(config())
    assert isinstance(model, D2TestModel)
    assert model.in_features == 5
    assert model.weight.device.type == "cpu"


def test_build_backbone():
    backbone = build_backbone(config())
    assert backbone.input_shape == ShapeSpec(channels=3)
    assert backbone.output_shape() == {"res5": ShapeSpec(channels=8, stride=32)}
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}
    assert build_backbone(config(), ShapeSpec(channels=1)).input_shape.channels == 1


def test_what_is_not_a_backbone_is_refused():
    with pytest.raises(AssertionError):
        build_backbone(config("build_d2_test_not_a_backbone"))


def test_backbone_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Backbone()


def test_registry():
    registry = Registry("THINGS")

    @registry.register()
    def thing():
        pass

    assert registry.get("thing") is thing
    assert "thing" in registry
    assert dict(registry) == {"thing": thing}
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(thing)
    with pytest.raises(KeyError, match="No object named 'other' found in 'THINGS' registry"):
        registry.get("other")
