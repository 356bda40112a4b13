"""Any body of timm that gives a pyramid of features."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from bevkd2.modeling.backbones.initial_weights import load_body_weights


class TimmBody(Backbone):
    """A timm model in ``features_only`` form; a feature of stride 2**k is called ``res{k}``.

    Batch normalisation uses the running statistics, as in the ResNet bodies.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int],
        in_channels: int = 3,
        frozen_bn: bool = True,
        checkpointing: bool = False,
        weights: str = "",
    ) -> None:
        """Build the body; nothing is downloaded.

        Args:
            name: of the timm model.
            out_indices: which of its features to return; bodies differ in whether 0 has stride 2 or 4.
            in_channels: of the images.
            frozen_bn: batch normalisation by the running statistics even in training.
            checkpointing: recompute blocks in the backward pass.
            weights: local file that fills it; "": random weights.

        Raises:
            ValueError: no such model, or features that share a stride.
        """
        super().__init__()
        if name not in timm.list_models():
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5] if name else []
            raise ValueError(f"MODEL.TIMM.NAME: timm has no model {name!r}; near it stand: {', '.join(near)}")
        self.body = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=tuple(out_indices), in_chans=in_channels
        )
        if weights:
            full = timm.create_model(name, pretrained=False, in_chans=in_channels)
            load_body_weights(full, weights)
            _copy_features(full, self.body)
        _freeze_unused(self.body, timm.get_pretrained_cfg(name).input_size[1:], in_channels)
        if checkpointing:
            self.body.set_grad_checkpointing()
        self.frozen_bn = frozen_bn
        strides = self.body.feature_info.reduction()
        self._out_features = [f"res{int(math.log2(stride))}" for stride in strides]
        if len(set(self._out_features)) != len(strides):
            raise ValueError(
                f"MODEL.TIMM.OUT_INDICES {list(out_indices)}: features of {name} share strides {strides}; "
                "choose indices of different strides"
            )
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        channels = self.body.feature_info.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> feature name -> (N, C_f, H / stride_f, W / stride_f)."""
        return dict(zip(self._out_features, self.body(x), strict=True))

    def train(self, mode: bool = True) -> TimmBody:
        """Sets the mode, but for frozen batch normalisation."""
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def _freeze_unused(body: nn.Module, image_size: Sequence[int], in_channels: int) -> None:
    """Freezes layers beyond the last feature, which some bodies keep: nothing would ever reach them.

    DistributedDataParallel would wait for their gradients.
    """
    probe = copy.deepcopy(body).to("meta").eval()
    features = probe(torch.empty(1, in_channels, *image_size, device="meta"))
    parameters = list(probe.parameters())
    grads = torch.autograd.grad([f.sum() for f in features], parameters, allow_unused=True)
    for parameter, grad in zip(body.parameters(), grads, strict=True):
        parameter.requires_grad_(grad is not None)


def _copy_features(full: nn.Module, features: nn.Module) -> None:
    """Copies weights into the ``features_only`` form, which flattens or wraps the first part of the names."""
    source = {}
    for key, value in full.state_dict().items():
        source |= {key: value, key.replace(".", "_", 1): value, f"model.{key}": value}
    features.load_state_dict({key: source[key] for key in features.state_dict()})


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBody:
    """Builds the body that ``MODEL.TIMM`` names, filled from ``MODEL.BACKBONE.WEIGHTS`` where given.

    Raises:
        ValueError: ``MODEL.BACKBONE.FREEZE_AT`` is not 0.
    """
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, "
            "but stages of timm bodies cannot be frozen; set it to 0"
        )
    return TimmBody(
        cfg.MODEL.TIMM.NAME,
        out_indices=cfg.MODEL.TIMM.OUT_INDICES,
        in_channels=input_shape.channels,
        frozen_bn=cfg.MODEL.RESNETS.NORM == "FrozenBN",
        checkpointing=cfg.MODEL.BACKBONE.CHECKPOINTING,
        weights=cfg.MODEL.BACKBONE.WEIGHTS,
    )
