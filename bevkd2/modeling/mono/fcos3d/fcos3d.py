"""FCOS3D (Wang et al., arXiv 2104.10956) and PGD (arXiv 2107.14160): a 3D box at every cell of a pyramid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.config import CfgNode
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.modeling.detector import FeatureShapes, HeadTowers
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.mono.assign import assign_locations
from bevkd2.modeling.mono.detector import MonoDetector
from bevkd2.modeling.mono.fcos3d.config import fcos3d_arguments, pgd_arguments
from bevkd2.modeling.mono.fcos3d.decode import (
    DecodeOptions,
    boxes2d_of_all,
    boxes_of_all,
    candidates_of,
    fused_depth,
    select_detections,
)
from bevkd2.modeling.mono.fcos3d.deployable import DeployableDense
from bevkd2.modeling.mono.fcos3d.head import DenseHead, DenseOutputs, DepthOutputs
from bevkd2.modeling.mono.fcos3d.losses import DenseCriterion
from bevkd2.modeling.mono.grid import flatten_levels
from bevkd2.modeling.mono.head import HeadPredictions, TowerFeatures
from bevkd2.modeling.mono.inputs import MonoInputs, MonoTargets
from bevkd2.modeling.mono.lift import boxes_around

_OF_ALL_BRANCHES = frozenset({"outputs", "boxes", "boxes2d", "depth_uncertainty"})
_DEPTHS = frozenset({"depth", "direct_depth", "probabilistic_depth"})
_PREDICTED = _DEPTHS | {"logits", "outputs"}


@META_ARCH_REGISTRY.register()
class FCOS3D(MonoDetector):
    """A dense monocular detector.

    Normalisation and losses but for the published normalisers look at one image at a time. Images of
    different sizes are padded to one, and the head's group normalisation sees the padding, as published.
    """

    head: DenseHead

    @configurable
    def __init__(
        self,
        *,
        head: DenseHead,
        criterion: DenseCriterion,
        decoding: DecodeOptions,
        regress_ranges: Sequence[tuple[float, float]],
        center_radius: float,
        **shared: Any,
    ) -> None:
        """Keeps the parts.

        Args:
            head: the neck's levels to maps.
            criterion: the losses.
            decoding: how maps become detections.
            regress_ranges: smallest and largest distance (px) to a 2D box's sides, level by level.
            center_radius: strides around a projected centre within which locations are assigned to an object.
            **shared: of :class:`MonoDetector`.
        """
        super().__init__(**shared)
        self.head, self.criterion, self.decoding = head, criterion, decoding
        self.regress_ranges, self.center_radius = list(regress_ranges), center_radius

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translates the config into constructor arguments."""
        return fcos3d_arguments(cfg)

    def feature_shapes(self) -> FeatureShapes:
        """Returns the shapes of backbone, neck and towers."""
        towers = HeadTowers(self.head.tower.channels, self.head.tower.convs)
        return dataclasses.replace(super().feature_shapes(), towers=towers)

    def continue_head(
        self, class_features: Sequence[Tensor], box_features: Sequence[Tensor], layer: int
    ) -> HeadPredictions:
        """Runs the head from its towers' convolution ``layer`` on; boxes are :attr:`DenseOutputs.boxes`."""
        outputs = self.head.resume(class_features, box_features, layer)
        return HeadPredictions(outputs.flat("logits"), outputs.flat("boxes"))

    def assign(self, targets: MonoTargets) -> Tensor:
        """Returns (B, Q) int64: the object near whose projected centre each location is."""
        return assign_locations(targets, self.regress_ranges, self.center_radius)

    def filled_fields(self) -> frozenset[str]:
        """Returns also the boxes, the towers, and the depths that the head has branches for."""
        branches = self.head.extra_branches
        absent = set() if "depth_bins" in branches else {"probabilistic_depth"}
        uncertainty = {"depth_uncertainty"} if "uncertainty" in branches else set()
        return super().filled_fields() - absent | {"boxes", "boxes2d", "towers"} | uncertainty

    def extract(
        self, inputs: MonoInputs, wants: frozenset[str] = frozenset(), state: Any = None
    ) -> MonoKnowledge:
        """Runs backbone, neck and head.

        Args:
            inputs: of :meth:`preprocess`.
            wants: fields to fill beside those that are not costly.
            state: not used: every image is on its own.

        Returns:
            The knowledge; ``outputs`` are :class:`DenseOutputs`.

        Raises:
            ValueError: an unknown want.
        """
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=False))

    def extract_only(self, inputs: MonoInputs, wants: frozenset[str], state: Any = None) -> MonoKnowledge:
        """Runs only those branches of the head that ``wants`` need."""
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=True))

    def _extract(self, inputs: MonoInputs, fills: frozenset[str]) -> MonoKnowledge:
        levels, knowledge = self.features(inputs, fills)
        outputs = None
        kept = knowledge.towers = TowerFeatures() if "towers" in fills else None
        if kept is not None and fills.isdisjoint(_PREDICTED | _OF_ALL_BRANCHES):
            for level in levels:
                self.head.run_towers(level, kept)
            return knowledge
        if kept is not None or not fills.isdisjoint(_OF_ALL_BRANCHES):
            outputs = self.head(levels, kept)
            knowledge.outputs = outputs if "outputs" in fills else None
            maps = DepthOutputs(outputs.logits, [m[:, 2:3] for m in outputs.boxes], outputs.depth_bins)
        elif "logits" in fills or not fills.isdisjoint(_DEPTHS):
            maps = self.head.class_and_depth(levels, with_depth=not fills.isdisjoint(_DEPTHS))
        else:
            return knowledge
        knowledge.logits = flatten_levels(maps.logits) if outputs is None else outputs.flat("logits")
        if maps.depth is not None:
            knowledge.depth, knowledge.direct_depth, knowledge.probabilistic_depth = fused_depth(
                maps.depth, maps.depth_bins, self.head.fuse_lambda, self.decoding.depth_unit
            )
        if outputs is not None:
            self._fill_boxes(knowledge, outputs, inputs, fills)
        return knowledge

    def _fill_boxes(
        self, knowledge: MonoKnowledge, outputs: DenseOutputs, inputs: MonoInputs, fills: frozenset[str]
    ) -> None:
        """Fills what is asked for of the boxes of all locations."""
        if "depth_uncertainty" in fills and outputs.uncertainty is not None:
            knowledge.depth_uncertainty = outputs.flat("uncertainty")[..., 0]
        if fills.isdisjoint({"boxes", "boxes2d"}):
            return
        boxes = boxes_of_all(
            outputs,
            knowledge.filled("depth"),
            cam2img=inputs.cam2img,
            grid=inputs.grid,
            options=self.decoding,
        )
        if "boxes" in fills:
            knowledge.boxes = boxes
        if "boxes2d" in fills:
            own = boxes2d_of_all(outputs, inputs.image_sizes, inputs.grid)
            knowledge.boxes2d = boxes_around(boxes, inputs) if own is None else own

    def losses(self, knowledge: MonoKnowledge, targets: MonoTargets) -> dict[str, Tensor]:
        """Returns weighted losses of the head's maps."""
        losses: dict[str, Tensor] = self.criterion(knowledge.outputs, targets, self.head.fuse_lambda)
        return losses

    def deployable(self, image_size: tuple[int, int]) -> DeployableDense:
        """Returns the form that can be exported."""
        return DeployableDense(self, image_size)

    @torch.no_grad()
    def inference(self, knowledge: MonoKnowledge, inputs: MonoInputs) -> list[dict[str, Any]]:
        """Returns detections, one dict per image.

        Args:
            knowledge: of :meth:`extract`.
            inputs: of :meth:`preprocess`.

        Returns:
            ``boxes`` (CameraBoxes3D), ``scores`` (k,) and ``labels`` (k,), and where the head has them
            ``boxes2d`` (k, 4) in pixels of the input and ``attributes`` (k,).
        """
        candidates = candidates_of(
            knowledge.outputs,
            knowledge.filled("depth"),
            cam2img=inputs.cam2img,
            image_sizes=inputs.image_sizes,
            grid=inputs.grid,
            options=self.decoding,
        )
        return [select_detections(image, self.decoding) for image in candidates]


@META_ARCH_REGISTRY.register()
class PGD(FCOS3D):
    """FCOS3D with a depth distribution, fused with the regressed depth, and with geometric side tasks.

    As in the released code there is no graph that propagates depths between objects.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translates the config into constructor arguments."""
        return pgd_arguments(cfg)
