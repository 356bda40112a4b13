"""The registries of models, and the functions that build from them."""

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from bevkd2.d2.embedded.config import CfgNode
from bevkd2.d2.embedded.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models: each is called as ``obj(cfg)`` and returns an nn.Module."

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Backbones: each is called as ``obj(cfg, input_shape)`` and returns a Backbone."


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known when the model is built.

    Attributes:
        channels: number of channels.
        height: rows.
        width: columns.
        stride: input pixels a row or column.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module, metaclass=ABCMeta):
    """A backbone that turns images into a dict of feature maps."""

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self) -> dict[str, torch.Tensor]:
        """Computes the features; subclasses take images (N, C, H, W).

        Returns:
            Feature name (e.g. ``res2``) -> (N, C_f, H / stride_f, W / stride_f).
        """

    @property
    def size_divisibility(self) -> int:
        """What the input's height and width must be divisible by; 0: no constraint."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Constraints on padding, by the keys ``size_divisibility`` and ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature that :meth:`forward` returns, by name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_model(cfg: CfgNode) -> nn.Module:
    """Builds the model that ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``.

    Args:
        cfg: the config; ``MODEL.WEIGHTS`` is not read.

    Returns:
        The model with its initial weights.

    Raises:
        KeyError: no such model is registered.
    """
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.to(torch.device(cfg.MODEL.DEVICE))
    return model


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Builds the backbone that ``cfg.MODEL.BACKBONE.NAME`` names.

    Args:
        cfg: the config.
        input_shape: shape of the images; by default, as many channels as ``cfg.MODEL.PIXEL_MEAN`` has.

    Returns:
        The backbone.

    Raises:
        AssertionError: what was registered does not build a Backbone.
        KeyError: no such backbone is registered.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise AssertionError(
            f"BACKBONE '{cfg.MODEL.BACKBONE.NAME}' built a {type(backbone).__qualname__}, "
            "but a subclass of bevkd2.d2.Backbone is expected"
        )
    return backbone
