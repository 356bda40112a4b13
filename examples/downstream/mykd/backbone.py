from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec


class TwoLayers(Backbone):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 7, stride=8, padding=3)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.first(images).relu()
        return {"res3": fine, "res4": self.second(fine).relu()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res3": ShapeSpec(channels=16, stride=8), "res4": ShapeSpec(channels=32, stride=16)}


@BACKBONE_REGISTRY.register()
def build_two_layers(cfg: CfgNode, input_shape: ShapeSpec) -> TwoLayers:
    return TwoLayers(input_shape.channels)
