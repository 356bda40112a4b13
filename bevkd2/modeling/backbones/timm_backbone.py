"""Any backbone of timm that gives a pyramid of features."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from fvcore.common.config import CfgNode as FvcoreNode
from timm.models.dla import DlaTree
from torch import Tensor, nn

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from bevkd2.modeling.backbones.initial_weights import load_backbone_weights
from bevkd2.modeling.backbones.layers import check_norm, freeze_batch_norms, make_norm


@add_config_extension
def add_timm_config(cfg: FvcoreNode) -> None:
    """Adds MODEL.TIMM, which :func:`build_timm_backbone` reads.

    Args:
        cfg: the default config; changed in place.
    """
    node = cfg.MODEL.TIMM = CfgNode()
    node.NAME = ""  # for NAME: build_timm_backbone; any timm model that has features_only
    node.OUT_INDICES = [3]  # which of its features; models differ in whether 0 has stride 2 or 4


class TimmBackbone(Backbone):
    """A timm model in ``features_only`` form; a feature of stride 2**k is called ``res{k}``.

    Its batch normalisation uses the running statistics in the default form, as in the ResNet backbones, or is
    exchanged for group normalisation.
    """

    body: Any  # timm's, whose attributes nn.Module does not declare

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int],
        in_channels: int = 3,
        norm: str = "FrozenStatsBN",
        checkpointing: bool = False,
        weights: str = "",
    ) -> None:
        """Builds the backbone.

        Args:
            name: of the timm model.
            out_indices: which of its features to return; backbones differ in whether 0 has stride 2 or 4.
            in_channels: of the images.
            norm: what replaces the model's batch normalisation: "FrozenStatsBN" uses the running statistics
                even in training, "BN" is as it is, "GN" is :func:`make_norm`'s group normalisation. A model
                without batch normalisation keeps its own.
            checkpointing: recompute blocks in the backward pass.
            weights: MODEL.BACKBONE.WEIGHTS, see :func:`load_backbone_weights`; "": random weights.

        Raises:
            ValueError: no such model, one without default settings, an unknown norm, or features that
                share a stride.
        """
        super().__init__()
        if name not in timm.list_models():
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5] if name else []
            raise ValueError(f"MODEL.TIMM.NAME: timm has no model {name!r}; did you mean: {', '.join(near)}")
        check_norm(norm, ("FrozenStatsBN", "BN", "GN"), "a timm backbone")
        self.body = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=tuple(out_indices), in_chans=in_channels
        )
        if norm == "GN":
            _group_normalize(self.body)
        if weights:
            full = timm.create_model(name, pretrained=False, in_chans=in_channels)
            if norm == "GN":
                _group_normalize(full)
            load_backbone_weights(full, weights, unused=_unused_projections(full))
            _copy_features(full, self.body)
        pretrained = timm.get_pretrained_cfg(name)
        if pretrained is None:
            raise ValueError(
                f"MODEL.TIMM.NAME: timm's model {name!r} has no default settings, expected its input_size, "
                "by which unused layers are found; register it with default_cfgs"
            )
        _freeze_unused(self.body, pretrained.input_size[1:], in_channels)
        if checkpointing:
            self.body.set_grad_checkpointing()
        self.frozen_bn = norm == "FrozenStatsBN"
        info: Any = self.body.feature_info  # timm's FeatureInfo
        strides = info.reduction()
        self._out_features = [f"res{int(math.log2(stride))}" for stride in strides]
        if len(set(self._out_features)) != len(strides):
            raise ValueError(
                f"MODEL.TIMM.OUT_INDICES {list(out_indices)}: features of {name} share strides {strides}; "
                "choose indices of different strides"
            )
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        channels = info.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W) normalised images to features, name -> (N, C_f, H / stride_f, W / stride_f)."""
        return dict(zip(self._out_features, self.body(x), strict=True))

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the mode of everything but frozen batch normalisation."""
        super().train(mode)
        if self.frozen_bn:
            freeze_batch_norms(self)
        return self


def _group_normalize(module: nn.Module) -> None:
    """Replaces every batch normalisation by a new group normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            if type(child) is not nn.BatchNorm2d:
                raise ValueError(
                    f"MODEL.BACKBONE.NORM is 'GN', but the model's {type(child).__name__} is more than a "
                    "batch normalisation; use FrozenStatsBN or BN, or a model with plain ones (dla34, dla60)"
                )
            setattr(module, name, make_norm("GN", child.num_features))
        else:
            _group_normalize(child)


def _unused_projections(full: nn.Module) -> tuple[str, ...]:
    """Returns prefixes of parameters in the published files of DLA that no forward pass reads.

    They are the projections of trees of trees, whose inner trees have their own.
    """
    trees = [(name, module) for name, module in full.named_modules() if isinstance(module, DlaTree)]
    return tuple(f"{name}.project." for name, tree in trees if tree.levels > 1)


def _freeze_unused(backbone: nn.Module, image_size: Sequence[int], in_channels: int) -> None:
    """Freezes layers beyond the last feature, which some models keep.

    They get no gradients, and DistributedDataParallel would wait for those.
    """
    probe = copy.deepcopy(backbone).to("meta").eval()
    features = probe(torch.empty(1, in_channels, *image_size, device="meta"))
    parameters = list(probe.parameters())
    grads = torch.autograd.grad([f.sum() for f in features], parameters, allow_unused=True)
    for parameter, grad in zip(backbone.parameters(), grads, strict=True):
        parameter.requires_grad_(grad is not None)


def _copy_features(full: nn.Module, features: nn.Module) -> None:
    """Copies weights into the ``features_only`` form, which flattens or wraps the first part of the names."""
    source: dict[str, Tensor] = {}
    for key, value in full.state_dict().items():
        source |= {key: value, key.replace(".", "_", 1): value, f"model.{key}": value}
    features.load_state_dict({key: source[key] for key in features.state_dict()})


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Builds the backbone that ``MODEL.TIMM`` names, filled from ``MODEL.BACKBONE.WEIGHTS`` where given.

    Raises:
        ValueError: ``MODEL.BACKBONE.FREEZE_AT`` is not 0.
    """
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, "
            "but stages of timm backbones cannot be frozen; set it to 0"
        )
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        out_indices=cfg.MODEL.TIMM.OUT_INDICES,
        in_channels=input_shape.channels,
        norm=cfg.MODEL.BACKBONE.NORM,
        checkpointing=cfg.MODEL.BACKBONE.CHECKPOINTING,
        weights=cfg.MODEL.BACKBONE.WEIGHTS,
    )
