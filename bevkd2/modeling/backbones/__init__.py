"""Image bodies, registered in BACKBONE_REGISTRY by importing this room."""

from bevkd2.modeling.backbones.resnet import ResNet, build_bevkd2_resnet_backbone
from bevkd2.modeling.backbones.timm_backbone import TimmBody, build_timm_backbone
from bevkd2.modeling.backbones.torchvision_backbone import TorchvisionBody, build_torchvision_backbone

__all__ = [
    "ResNet",
    "TimmBody",
    "TorchvisionBody",
    "build_bevkd2_resnet_backbone",
    "build_timm_backbone",
    "build_torchvision_backbone",
]
