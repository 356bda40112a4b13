"""Image backbones, registered in BACKBONE_REGISTRY by importing this package."""

from bevkd2.modeling.backbones.pre_activation import PreActivationBackbone
from bevkd2.modeling.backbones.resnet import ResNet, build_bevkd2_resnet_backbone
from bevkd2.modeling.backbones.timm_backbone import TimmBackbone, build_timm_backbone
from bevkd2.modeling.backbones.torchvision_backbone import TorchvisionBackbone, build_torchvision_backbone

__all__ = [
    "PreActivationBackbone",
    "ResNet",
    "TimmBackbone",
    "TorchvisionBackbone",
    "build_bevkd2_resnet_backbone",
    "build_timm_backbone",
    "build_torchvision_backbone",
]
