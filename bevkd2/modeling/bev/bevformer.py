"""BEVFormer (Li et al., arXiv 2203.17270): from six cameras and the past to boxes, by a bird's-eye view."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.modeling.bev.box_coder import DecodeOptions, decode_detections
from bevkd2.modeling.bev.config import bevformer_arguments
from bevkd2.modeling.bev.criterion import SetCriterion
from bevkd2.modeling.bev.decoder import DecoderOutput, ObjectDecoder
from bevkd2.modeling.bev.dense_boxes import (
    BEV_CHANNELS,
    IMAGE_CHANNELS,
    VELOCITY,
    DenseBoxHead,
    DenseBoxWeights,
    bev_box_loss,
    image_box_loss,
)
from bevkd2.modeling.bev.deployable import DeployableBEVFormer
from bevkd2.modeling.bev.detector import MultiViewDetector
from bevkd2.modeling.bev.encoder import BEVEncoder, EncoderOutput
from bevkd2.modeling.bev.geometry import BEVGeometry, Exists, VisiblePairs
from bevkd2.modeling.bev.grid_mask import GridMask
from bevkd2.modeling.bev.heatmaps import HeatmapWeights, bev_heatmap_loss, image_heatmap_loss
from bevkd2.modeling.bev.inputs import MASK_KEY, BEVInputs, BEVTargets, Frames
from bevkd2.modeling.bev.layers import BEVPosition, can_bus_embedding
from bevkd2.modeling.bev.memory import evaluating, rows_with_history, select_rows, update_rows
from bevkd2.modeling.detector import BEVShape, DecoderShape, Detector, FeatureShapes
from bevkd2.modeling.heatmaps import HeatmapHead
from bevkd2.modeling.knowledge import BEVKnowledge, TemporalState
from bevkd2.modeling.sample import Sample

# Fields that need neither the history nor the encoder, and those that need the decoder.
_BEFORE_ENCODER = frozenset(
    {"backbone", "pre_activation", "fpn", "fpn_strides", "image_sizes", "image_heatmap", "image_boxes"}
    | {"bev_shape", "bev_range", "bev_mask", "reference_points", "object_queries"}
)
_DECODED = frozenset({"logits", "class_logits", "box_codes", "decoder_states", "decoder_reference_points"})


@META_ARCH_REGISTRY.register()
class BEVFormer(MultiViewDetector):
    """A camera 3D detector with a recurrent bird's-eye view.

    Every sample of a batch has its own calibration, camera visibility and history; outputs do not depend on
    what else is in the batch.
    """

    bev_shape: tuple[int, int]

    @configurable
    def __init__(
        self,
        *,
        encoder: BEVEncoder,
        decoder: ObjectDecoder,
        criterion: SetCriterion,
        geometry: BEVGeometry,
        grid_mask: GridMask | None,
        num_queries: int,
        query_init: str = "random",
        use_can_bus: bool = True,
        decoding: DecodeOptions,
        heatmaps: HeatmapWeights,
        dense_boxes: DenseBoxWeights,
        dense_velocity: bool = False,
        **shared: Any,
    ) -> None:
        """Keeps the parts and makes the queries.

        Args:
            encoder: camera features to the bird's-eye view.
            decoder: bird's-eye view to objects.
            criterion: the set losses.
            geometry: grid, range, and how motion and cameras map to it.
            grid_mask: draws the masks of this model's training; None: it draws none.
            num_queries: object queries.
            query_init: "random" | "grid": object queries start on a regular grid.
            use_can_bus: add an embedding of the 18-vector of motion to the BEV queries.
            decoding: how predictions become detections.
            heatmaps: weights of the auxiliary heads of training.
            dense_boxes: weights of the auxiliary box heads.
            dense_velocity: the decoder's velocities are added to those of the BEV head among them.
            **shared: of :class:`MultiViewDetector`; the channels of the neck are those of all queries (C).
        """
        super().__init__(bev_shape=geometry.bev_shape, **shared)
        self.encoder, self.decoder = encoder, decoder
        self.criterion, self.geometry, self.grid_mask = criterion, geometry, grid_mask
        embed_dim = self.neck.out_channels
        height, width = geometry.bev_shape
        self.bev_queries = nn.Parameter(torch.randn(height * width, embed_dim))
        self.bev_position = BEVPosition(geometry.bev_shape, embed_dim)
        self.object_queries = nn.Parameter(torch.randn(num_queries, 2 * embed_dim))
        if query_init == "grid":
            decoder.init_grid_queries(self.object_queries)
        self.can_bus_mlp = can_bus_embedding(embed_dim) if use_can_bus else None
        self.decoding, self.heatmaps = decoding, heatmaps
        self.bev_heatmap_head = HeatmapHead(embed_dim, self.num_classes) if heatmaps.bev else None
        self.image_heatmap_head = HeatmapHead(embed_dim, self.num_classes) if heatmaps.image else None
        self.dense_boxes, self.dense_velocity = dense_boxes, dense_velocity
        self.bev_box_head = DenseBoxHead(embed_dim, BEV_CHANNELS) if dense_boxes.bev else None
        self.image_box_head = DenseBoxHead(embed_dim, IMAGE_CHANNELS) if dense_boxes.image else None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translates the config into constructor arguments."""
        return bevformer_arguments(cfg)

    def inheritable(self) -> dict[str, nn.Parameter]:
        """Returns parameters that a student can take over from a teacher, by the name that configs use."""
        modules = {"bev_position": self.bev_position, "reference_points": self.decoder.reference_points}
        if self.can_bus_mlp is not None:
            modules["can_bus_mlp"] = self.can_bus_mlp
        return {
            "bev_queries": self.bev_queries,
            "object_queries": self.object_queries,
            "level_embeddings": self.encoder.level_embeddings,
            "camera_embeddings": self.encoder.camera_embeddings,
            **{
                f"{name}.{key}": parameter
                for name, module in modules.items()
                for key, parameter in module.named_parameters()
            },
        }

    def inference_parameters(self) -> list[nn.Parameter]:
        """Returns all parameters but those of auxiliary heads that detections do not need."""
        heads = [self.bev_heatmap_head, self.image_heatmap_head, self.image_box_head]
        heads += [] if self.dense_velocity else [self.bev_box_head]
        left_out = {id(p) for head in heads if head is not None for p in head.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in left_out]

    def check_inherited(self, teacher: Detector[Any, Any, Any], names: Sequence[str]) -> None:
        """Checks that box branches that are taken over mean the same headings and velocities here."""
        branches = [name for name in names if name.startswith("decoder.box_branches.")]
        ours = self._meaning_of_branches()
        theirs = teacher._meaning_of_branches() if isinstance(teacher, BEVFormer) else {}
        for key in (key for key in ours if branches and ours[key] != theirs.get(key)):
            raise ValueError(
                f"{branches[0]} is inherited, but MODEL.BEVFORMER.{key} is {ours[key]} in the student and "
                f"{theirs.get(key)} in the teacher, so that the branch would mean something else; make them "
                "equal"
            )
        if branches and self.dense_velocity and not any(name.startswith("bev_box_head.") for name in names):
            raise ValueError(
                f"{branches[0]} is inherited without bev_box_head, to whose velocities the branch's are "
                "added (MODEL.BEVFORMER.DENSE_VELOCITY); name bev_box_head too"
            )

    def _meaning_of_branches(self) -> dict[str, bool]:
        """Returns the keys of the config by which the numbers of the box branches have other meanings."""
        return {"RAY_HEADING": self.decoder.ray_heading, "DENSE_VELOCITY": self.dense_velocity}

    def augment(self, batched_inputs: Sequence[Sample]) -> list[Sample]:
        """Draws a GridMask for every sample of a training batch that has none yet."""
        if self.grid_mask is None:
            return list(batched_inputs)
        return [
            sample
            if MASK_KEY in sample
            else {**sample, MASK_KEY: self.grid_mask.draw(sample["images"].shape[-2])}
            for sample in batched_inputs
        ]

    def random_settings(self) -> list[str]:
        """Returns the key of the GridMask, where there is one."""
        return [] if self.grid_mask is None else ["MODEL.GRID_MASK.ENABLED: True"]

    def copy_augmentation(self, source: Sample, target: Sample) -> Sample:
        """Returns ``target`` with the GridMask of ``source``, scaled to the height of its images."""
        pattern = source.get(MASK_KEY)
        if pattern is None:
            return {**target, MASK_KEY: None}
        scale = target["images"].shape[-2] / source["images"].shape[-2]
        return {**target, MASK_KEY: pattern.scaled(scale)}

    def feature_shapes(self) -> FeatureShapes:
        """Returns the shapes of backbone, neck, bird's-eye view and decoder."""
        channels = self.neck.out_channels
        return dataclasses.replace(
            super().feature_shapes(),
            bev=BEVShape(channels, self.bev_shape, len(self.encoder.layers)),
            decoder=DecoderShape(channels, len(self.decoder.layers), len(self.object_queries)),
        )

    def filled_fields(self) -> frozenset[str]:
        """Returns all fields but those of auxiliary heads that the model does not have."""
        heads = {
            "bev_heatmap": self.bev_heatmap_head,
            "image_heatmap": self.image_heatmap_head,
            "bev_boxes": self.bev_box_head,
            "image_boxes": self.image_box_head,
        }
        absent = {name for name, head in heads.items() if head is None}
        return super().filled_fields() | self.knowledge.costly_fields() - {"pre_activation"} - absent

    def extract(
        self,
        inputs: BEVInputs,
        wants: frozenset[str] = frozenset(),
        state: TemporalState | None = None,
    ) -> BEVKnowledge:
        """Encodes the history, without gradient and in eval mode, and then the current frames.

        Args:
            inputs: of :meth:`preprocess`.
            wants: fields to fill beside those that are not costly.
            state: of the frames before, row by row; rows of another scene or of no earlier time have no past.

        Returns:
            The knowledge, with the state for the next frames.

        Raises:
            ValueError: an unknown want.
        """
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=False), state)

    def extract_only(
        self, inputs: BEVInputs, wants: frozenset[str], state: TemporalState | None = None
    ) -> BEVKnowledge:
        """Runs the decoder, and history and encoder, only where ``wants`` need them."""
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=True), state)

    def _extract(self, inputs: BEVInputs, fills: frozenset[str], state: TemporalState | None) -> BEVKnowledge:
        if fills <= _BEFORE_ENCODER:
            return self._extract_images(inputs.current, fills)[1]
        batch_size = len(inputs.current.rows)
        with torch.no_grad(), evaluating(self):
            for frames in inputs.history:
                past = None if state is None else select_rows(state, frames.rows)
                features, _ = self.features(frames, frozenset())
                encoded, _ = self._encode(features, frames, past)
                state = update_rows(state, _next_state(encoded, frames), frames.rows, batch_size)
        return self._extract_current(inputs.current, state, fills)

    def _extract_images(self, frames: Frames, fills: frozenset[str]) -> tuple[list[Tensor], BEVKnowledge]:
        """Returns the neck's levels, and a knowledge with the fields of ``_BEFORE_ENCODER``."""
        geometry = self.geometry
        features, knowledge = self.features(frames, fills)
        x0, y0, _, x1, y1, _ = geometry.pc_range
        knowledge.bev_shape, knowledge.bev_range = geometry.bev_shape, (x0, y0, x1, y1)
        knowledge.object_queries = self.object_queries
        if "bev_mask" in fills:
            knowledge.bev_mask = geometry.visible_pairs(frames).bev_mask
        if "reference_points" in fills:
            knowledge.reference_points, _ = geometry.project(frames)
        if self.image_heatmap_head is not None and (self.training or "image_heatmap" in fills):
            knowledge.image_heatmap = self.image_heatmap_head(features[0].flatten(0, 1))
        if self.image_box_head is not None and (self.training or "image_boxes" in fills):
            knowledge.image_boxes = self.image_box_head(features[0].flatten(0, 1))
        return features, knowledge

    def _extract_current(
        self,
        frames: Frames,
        state: TemporalState | None,
        fills: frozenset[str],
    ) -> BEVKnowledge:
        features, knowledge = self._extract_images(frames, fills - {"bev_mask"})
        encoded, pairs = self._encode(features, frames, state, fills)
        knowledge.bev_embed, knowledge.bev_mask = encoded.bev_embed, pairs.bev_mask
        for name, layers in encoded.costly.items():
            setattr(knowledge, name, layers)
        knowledge.state = _next_state(encoded, frames)
        if self.bev_box_head is not None and (self.training or "bev_boxes" in fills):
            knowledge.bev_boxes = self._bev_boxes(encoded.bev_embed)
        if not fills.isdisjoint(_DECODED):
            decoded = self.decode(knowledge, self.object_queries)
            knowledge.class_logits, knowledge.box_codes = decoded.class_logits, decoded.box_codes
            knowledge.logits = decoded.class_logits[-1]
            if "decoder_states" in fills:
                knowledge.decoder_states = decoded.states
            if "decoder_reference_points" in fills:
                knowledge.decoder_reference_points = decoded.reference_points
        if self.bev_heatmap_head is not None and (self.training or "bev_heatmap" in fills):
            grid = encoded.bev_embed.transpose(1, 2).unflatten(2, self.bev_shape)
            knowledge.bev_heatmap = self.bev_heatmap_head(grid)
        return knowledge

    def decode(
        self, knowledge: BEVKnowledge, object_queries: Tensor, reference_points: Tensor | None = None
    ) -> DecoderOutput:
        """Runs the decoder on the bird's-eye view of ``knowledge`` with the given queries."""
        bev = knowledge.filled("bev_embed")
        velocities = None
        if self.dense_velocity:
            dense = self._bev_boxes(bev) if knowledge.bev_boxes is None else knowledge.bev_boxes
            velocities = dense[:, VELOCITY]
        decoded: DecoderOutput = self.decoder(
            object_queries, bev, self.bev_shape, reference_points, velocities
        )
        return decoded

    def _bev_boxes(self, bev: Tensor) -> Tensor:
        """Returns (B, BEV_CHANNELS, H, W) of the dense head, for (B, H*W, C)."""
        assert self.bev_box_head is not None
        boxes: Tensor = self.bev_box_head(bev.transpose(1, 2).unflatten(2, self.bev_shape))
        return boxes

    def _encode(
        self,
        features: list[Tensor],
        frames: Frames,
        state: TemporalState | None,
        wants: frozenset[str] = frozenset(),
    ) -> tuple[EncoderOutput, VisiblePairs]:
        exists = rows_with_history(state, frames.scene_tokens, frames.timestamps)
        previous = None if state is None else state.can_bus
        motion = self.geometry.motion(frames.can_bus, previous, exists)
        bev = None if state is None else state.bev_embed
        return self.encode_bev(features, frames, motion, bev, exists, wants)

    def encode_bev(
        self,
        features: list[Tensor],
        frames: Frames,
        motion: Tensor,
        previous_bev: Tensor | None,
        exists: Exists,
        wants: frozenset[str] = frozenset(),
    ) -> tuple[EncoderOutput, VisiblePairs]:
        """Encodes image features to the bird's-eye view.

        Args:
            features: (B, N, C, h, w) per level, finest first.
            frames: their geometry.
            motion: (B, 18) float64 of :func:`bevkd2.modeling.bev.geometry.ego_motion`.
            previous_bev: (B, H*W, C) as it left the encoder; None where no sample has a past.
            exists: which samples have a past.
            wants: of :meth:`extract`.
        """
        queries = self.bev_queries.expand(motion.shape[0], -1, -1)
        if self.can_bus_mlp is not None:
            queries = queries + self.can_bus_mlp(motion.float())[:, None]
        pairs = self.geometry.visible_pairs(frames)
        history = self.geometry.history(queries, motion, previous_bev, exists)
        return self.encoder(queries, self.bev_position(), features, pairs, history, wants), pairs

    def losses(self, knowledge: BEVKnowledge, targets: BEVTargets) -> dict[str, Tensor]:
        """Returns weighted losses of every decoder layer, and of the auxiliary heads that the model has."""
        logits, codes = knowledge.filled("class_logits"), knowledge.filled("box_codes")
        losses = self.criterion(logits, codes, targets.labels, targets.codes)
        if knowledge.bev_heatmap is not None:
            loss = bev_heatmap_loss(knowledge.bev_heatmap, targets, self.geometry.pc_range)
            losses["loss_bev_heatmap"] = self.heatmaps.bev * loss
        if knowledge.image_heatmap is not None:
            loss = image_heatmap_loss(knowledge.image_heatmap, targets, self.neck.strides[0])
            losses["loss_image_heatmap"] = self.heatmaps.image * loss
        if knowledge.bev_boxes is not None:
            relative = self.decoder.ray_heading
            loss = bev_box_loss(knowledge.bev_boxes, targets, self.geometry.pc_range, relative)
            losses["loss_bev_boxes"] = self.dense_boxes.bev * loss
        if knowledge.image_boxes is not None:
            loss = image_box_loss(knowledge.image_boxes, targets, self.neck.strides[0])
            losses["loss_image_boxes"] = self.dense_boxes.image * loss
        return losses

    def deployable(self, image_size: tuple[int, int]) -> DeployableBEVFormer:
        """Returns the form that can be exported."""
        return DeployableBEVFormer(self, image_size)

    @torch.no_grad()
    def inference(self, knowledge: BEVKnowledge, inputs: BEVInputs) -> list[dict[str, Any]]:
        """Returns detections of the last decoder layer, one dict per sample."""
        logits, codes = knowledge.filled("class_logits")[-1], knowledge.filled("box_codes")[-1]
        return [decode_detections(logits[row], codes[row], self.decoding) for row in inputs.current.rows]


def _next_state(encoded: EncoderOutput, frames: Frames) -> TemporalState:
    return TemporalState(
        encoded.bev_embed.detach(), frames.can_bus, list(frames.scene_tokens), list(frames.timestamps)
    )
