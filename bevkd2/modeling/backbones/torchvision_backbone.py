"""Any classification model of torchvision as an image backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from bevkd2.modeling.backbones.initial_weights import load_backbone_weights
from bevkd2.modeling.backbones.layers import check_norm, freeze_batch_norms

_PROBE = 128  # pixels: a side that every stride up to 64 divides


@add_config_extension
def add_torchvision_config(cfg: FvcoreNode) -> None:
    """Adds MODEL.TORCHVISION, which :func:`build_torchvision_backbone` reads.

    Args:
        cfg: the default config; changed in place.
    """
    node = cfg.MODEL.TORCHVISION = CfgNode()
    node.NAME = ""  # for NAME: build_torchvision_backbone; a classification model of torchvision
    node.NODES = []  # names of the nodes whose outputs are the features, finest first


class TorchvisionBackbone(Backbone):
    """A torchvision model cut off after its features; a feature of stride 2**k is called ``res{k}``."""

    def __init__(
        self, name: str, *, nodes: Sequence[str], norm: str = "FrozenStatsBN", weights: str = ""
    ) -> None:
        """Builds the backbone.

        Args:
            name: of the model, such as "shufflenet_v2_x1_0".
            nodes: whose outputs are the features, finest first, as torchvision's feature extraction names
                them.
            norm: "FrozenStatsBN" uses the running statistics even in training, "BN" does not.
            weights: MODEL.BACKBONE.WEIGHTS, see :func:`load_backbone_weights`; "": random weights.

        Raises:
            ValueError: no such model or node, another norm, or features that are no pyramid.
        """
        super().__init__()
        if name not in models.list_models(module=models):
            raise ValueError(
                f"MODEL.TORCHVISION.NAME: torchvision has no classification model {name!r}; one is "
                "'shufflenet_v2_x1_0'"
            )
        check_norm(
            norm, ("FrozenStatsBN", "BN"), "a torchvision backbone, which keeps its batch normalisation"
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
        self.frozen_bn = norm == "FrozenStatsBN"
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
        """Maps (N, 3, H, W) normalised images to features, name -> (N, C_f, H / stride_f, W / stride_f)."""
        return dict(zip(self._out_features, self.body(x).values(), strict=True))

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        """Sets the mode of everything but frozen batch normalisation."""
        super().train(mode)
        if self.frozen_bn:
            freeze_batch_norms(self)
        return self


def _is_node(model: nn.Module, node: str) -> bool:
    """Returns whether a node or a module of the traced graph has this name."""
    return any(name == node or name.startswith(f"{node}.") for name in get_graph_node_names(model)[1])


def _probe(backbone: nn.Module, nodes: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns strides and channels of the features."""
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
        norm=node.NORM,
        weights=node.WEIGHTS,
    )
