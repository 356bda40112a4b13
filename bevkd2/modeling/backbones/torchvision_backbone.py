"""Any classification model of torchvision as an image backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from bevkd2.config import CfgNode
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from bevkd2.modeling.backbones.initial_weights import load_backbone_weights
from bevkd2.modeling.backbones.norms import freeze_batch_norms

_PROBE = 128  # pixels: a side that every stride up to 64 divides


class TorchvisionBackbone(Backbone):
    """A torchvision model cut off after its features; a feature of stride 2**k is called ``res{k}``."""

    def __init__(self, name: str, *, nodes: Sequence[str], norm: str = "FrozenBN", weights: str = "") -> None:
        """Build the backbone; nothing is downloaded.

        Args:
            name: of the model, such as "shufflenet_v2_x1_0".
            nodes: whose outputs are the features, finest first, as torchvision's feature extraction names
                them.
            norm: "FrozenBN" uses the running statistics even in training, "BN" does not.
            weights: local file that fills it; "": random weights.

        Raises:
            ValueError: no such model or node, another norm, or features that are no pyramid.
        """
        super().__init__()
        if name not in models.list_models(module=models):
            raise ValueError(
                f"MODEL.TORCHVISION.NAME: torchvision has no classification model {name!r}; one is "
                "'shufflenet_v2_x1_0'"
            )
        if norm not in ("FrozenBN", "BN"):
            raise ValueError(
                f"MODEL.RESNETS.NORM is {norm!r}; a torchvision backbone keeps its batch normalisation: "
                "expected FrozenBN or BN"
            )
        model = models.get_model(name, weights=None)
        if weights:
            load_backbone_weights(model, weights)
        unknown = [node for node in nodes if not _is_node(model, node)]
        if unknown or not nodes:
            raise ValueError(
                f"MODEL.TORCHVISION.NODES is {list(nodes)}, expected one name or more of {name}, which has "
                f"no {unknown}; its modules are {', '.join(child for child, _ in model.named_children())}"
            )
        self.body = create_feature_extractor(model, {node: node for node in nodes})
        self.frozen_bn = norm == "FrozenBN"
        strides, channels = _probe(self.body, nodes)
        self._out_features = [f"res{int(math.log2(stride))}" for stride in strides]
        if strides != sorted(set(strides)):
            raise ValueError(
                f"MODEL.TORCHVISION.NODES {list(nodes)}: features of {name} have strides {strides}; name "
                "nodes of rising strides"
            )
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> feature name -> (N, C_f, H / stride_f, W / stride_f)."""
        return dict(zip(self._out_features, self.body(x).values(), strict=True))

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        """Sets the mode, but for frozen batch normalisation."""
        super().train(mode)
        if self.frozen_bn:
            freeze_batch_norms(self)
        return self


def _is_node(model: nn.Module, node: str) -> bool:
    """Whether a node of the traced graph has this name, or a module whose last node stands for it."""
    return any(name == node or name.startswith(f"{node}.") for name in get_graph_node_names(model)[1])


def _probe(backbone: nn.Module, nodes: Sequence[str]) -> tuple[list[int], list[int]]:
    """Strides and channels of the features."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
    backbone.train(was_training)
    return [_PROBE // features[n].shape[-1] for n in nodes], [features[n].shape[1] for n in nodes]


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Builds the backbone ``MODEL.TORCHVISION``, filled from ``MODEL.BACKBONE.WEIGHTS`` where given.

    Raises:
        ValueError: MODEL.BACKBONE.FREEZE_AT is not 0, or CHECKPOINTING is asked for.
    """
    node = cfg.MODEL.BACKBONE
    if node.FREEZE_AT or node.CHECKPOINTING:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {node.FREEZE_AT}, CHECKPOINTING {node.CHECKPOINTING}; "
            "torchvision backbones have neither: set them to 0 and False"
        )
    return TorchvisionBackbone(
        cfg.MODEL.TORCHVISION.NAME,
        nodes=cfg.MODEL.TORCHVISION.NODES,
        norm=cfg.MODEL.RESNETS.NORM,
        weights=node.WEIGHTS,
    )
