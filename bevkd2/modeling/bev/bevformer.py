"""BEVFormer (Li et al., arXiv 2203.17270): six cameras and the past to boxes, through a bird's-eye view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.d2 import META_ARCH_REGISTRY, Backbone, ShapeSpec, configurable
from bevkd2.modeling.bev.box_coder import decode_detections
from bevkd2.modeling.bev.config import bevformer_arguments
from bevkd2.modeling.bev.criterion import SetCriterion
from bevkd2.modeling.bev.decoder import ObjectDecoder
from bevkd2.modeling.bev.encoder import BEVEncoder, EncoderOutput
from bevkd2.modeling.bev.geometry import BEVGeometry
from bevkd2.modeling.bev.grid_mask import GridMask
from bevkd2.modeling.bev.heatmaps import bev_heatmap_loss, image_heatmap_loss
from bevkd2.modeling.bev.inputs import (
    BEVInputs,
    BEVTargets,
    Frames,
    collate_frames,
    collate_history,
    collate_targets,
)
from bevkd2.modeling.bev.memory import (
    SceneMemory,
    evaluating,
    rows_with_history,
    select_rows,
    split_by_time,
    update_rows,
)
from bevkd2.modeling.bev.projection import VisiblePairs
from bevkd2.modeling.bev.queries import BEVPosition, can_bus_embedding
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.heatmaps import HeatmapHead
from bevkd2.modeling.knowledge import WANTS, BEVKnowledge, TemporalState
from bevkd2.modeling.necks.neck import Neck
from bevkd2.modeling.pixels import PixelNormalizer


@META_ARCH_REGISTRY.register()
class BEVFormer(Detector):
    """A camera 3D detector with a recurrent bird's-eye view.

    Every sample of a batch has its own calibration, camera visibility and history; outputs do not depend on
    what else is in the batch.
    """

    knowledge = BEVKnowledge
    image_backbone: Backbone
    neck: Neck
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        image_backbone: Backbone,
        neck: Neck,
        encoder: BEVEncoder,
        decoder: ObjectDecoder,
        criterion: SetCriterion,
        geometry: BEVGeometry,
        grid_mask: GridMask | None,
        embed_dim: int,
        num_classes: int,
        num_cameras: int,
        num_queries: int,
        query_init: str = "random",
        use_can_bus: bool = True,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        pixel_format: str = "RGB",
        size_divisibility: int = 32,
        max_detections: int = 300,
        score_threshold: float = 0.0,
        post_center_range: Sequence[float],
        bev_heatmap_weight: float = 0.0,
        image_heatmap_weight: float = 0.0,
    ) -> None:
        """Put the parts together.

        Args:
            image_backbone: images (B*N, 3, H, W) to features by name.
            neck: those to a list of levels with ``embed_dim`` channels and known ``strides``.
            encoder: camera features to the bird's-eye view.
            decoder: bird's-eye view to objects.
            criterion: the set losses.
            geometry: grid, range, and how motion and cameras map to it.
            grid_mask: training augmentation, or None.
            embed_dim: C.
            num_classes: K.
            num_cameras: N.
            num_queries: object queries.
            query_init: "random" | "grid": object queries start on a regular grid.
            use_can_bus: add an embedding of the 18-vector of motion to the BEV queries.
            pixel_mean: of the images, in the order of ``pixel_format``, 0..255.
            pixel_std: likewise.
            pixel_format: "RGB" | "BGR", what the backbone was trained on.
            size_divisibility: images are padded to a multiple of it.
            max_detections: most detections a sample.
            score_threshold: 0: none.
            post_center_range: x0, y0, z0, x1, y1, z1 in metres; detections outside are dropped.
            bev_heatmap_weight: of the auxiliary BEV heat map; 0: no such head.
            image_heatmap_weight: of the auxiliary image heat map; 0: no such head.
        """
        super().__init__()
        self.image_backbone, self.neck = image_backbone, neck
        self.encoder, self.decoder = encoder, decoder
        self.criterion, self.geometry, self.grid_mask = criterion, geometry, grid_mask
        self.num_cameras, self.num_classes = num_cameras, num_classes
        height, width = geometry.bev_shape
        self.bev_queries = nn.Parameter(torch.randn(height * width, embed_dim))
        self.bev_position = BEVPosition(geometry.bev_shape, embed_dim)
        self.object_queries = nn.Parameter(torch.randn(num_queries, 2 * embed_dim))
        if query_init == "grid":
            decoder.init_grid_queries(self.object_queries)
        self.can_bus_mlp = can_bus_embedding(embed_dim) if use_can_bus else None
        self.pixel_format, self.size_divisibility = pixel_format, size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)), persistent=False)
        self.max_detections, self.score_threshold = max_detections, score_threshold
        self.post_center_range = list(post_center_range)
        self.bev_heatmap_weight, self.image_heatmap_weight = bev_heatmap_weight, image_heatmap_weight
        self.bev_heatmap_head = HeatmapHead(embed_dim, num_classes) if bev_heatmap_weight else None
        self.image_heatmap_head = HeatmapHead(embed_dim, num_classes) if image_heatmap_weight else None
        self._memory = SceneMemory()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translates the config into constructor arguments."""
        return bevformer_arguments(cfg)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    @property
    def bev_shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the grid."""
        return self.geometry.bev_shape

    def inheritable(self) -> dict[str, nn.Parameter]:
        """Parameters that a student can take over from a teacher, by the name that configs use."""
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

    def feature_shapes(self) -> FeatureShapes:
        """Returns the channels and strides of backbone and neck."""
        levels = [ShapeSpec(channels=self.neck.out_channels, stride=stride) for stride in self.neck.strides]
        return FeatureShapes(backbone=self.image_backbone.output_shape(), fpn=levels)

    def train(self, mode: bool = True) -> BEVFormer:
        """Sets the mode; a stream of frames that was being evaluated is over."""
        self._memory = SceneMemory()
        return super().train(mode)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, detections in evaluation.

        Args:
            batched_inputs: one mapping a sample: ``images`` (N, 3, H, W) uint8 RGB, ``lidar2img`` (N, 4, 4),
                ``can_bus`` (18,), ``scene_token``, ``timestamp``, ``history`` (a list of such frames, oldest
                first) and in training ``boxes`` and ``labels``.

        Returns:
            In training, name -> scalar. In evaluation one dict a sample with ``boxes`` (Boxes3D),
            ``scores`` (k,) and ``labels`` (k,); frames of a scene, given in order, use the one before.
        """
        if not self.training:
            return self._stream(batched_inputs)
        inputs = self.preprocess(batched_inputs)
        return self.losses(self.extract(inputs), self.targets(batched_inputs, inputs))

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> BEVInputs:
        """Moves to the device, normalises, pads and batches.

        Raises:
            KeyError: a sample lacks a key.
            ValueError: images of the wrong shape, type or number.
        """
        normalize = PixelNormalizer(
            self.pixel_mean, self.pixel_std, self.pixel_format == "BGR", self.size_divisibility
        )
        rows = list(range(len(batched_inputs)))
        return BEVInputs(
            current=collate_frames(batched_inputs, rows, normalize, self.num_cameras),
            history=collate_history(batched_inputs, normalize, self.num_cameras),
        )

    def targets(self, batched_inputs: Sequence[Mapping[str, Any]], inputs: BEVInputs) -> BEVTargets:
        """Annotations on the device.

        Raises:
            KeyError: a sample without annotations.
            ValueError: a box that no detector could predict, or a label that is no class.
        """
        return collate_targets(batched_inputs, inputs.current, self.num_classes)

    def extract(
        self, inputs: BEVInputs, wants: frozenset[str] = frozenset(), state: TemporalState | None = None
    ) -> BEVKnowledge:
        """The forward pass: first the history, without gradient and in eval mode, then the current frames.

        Args:
            inputs: of :meth:`preprocess`.
            wants: costly fields to fill, among :data:`bevkd2.modeling.knowledge.WANTS`.
            state: of the frames before, row by row; rows of another scene or of no earlier time have no past.

        Returns:
            The knowledge, with the state for the next frames.

        Raises:
            ValueError: an unknown want.
        """
        if wants - WANTS:
            raise ValueError(
                f"extract: unknown wants {sorted(wants - WANTS)}, expected among {sorted(WANTS)}"
            )
        batch_size = len(inputs.current.rows)
        with torch.no_grad(), evaluating(self):
            for frames in inputs.history:
                past = None if state is None else select_rows(state, frames.rows)
                features = self._features(frames, BEVKnowledge(), frozenset())
                encoded, _ = self._encode(features, frames, past)
                state = update_rows(state, _next_state(encoded, frames), frames.rows, batch_size)
        return self._run(inputs.current, state, wants)

    def _run(self, frames: Frames, state: TemporalState | None, wants: frozenset[str]) -> BEVKnowledge:
        knowledge = BEVKnowledge(
            bev_shape=self.geometry.bev_shape,
            fpn_strides=self.neck.strides,
            image_sizes=frames.image_sizes.flatten(0, 1),
        )
        features = self._features(frames, knowledge, wants)
        encoded, pairs = self._encode(features, frames, state, wants)
        decoded = self.decoder(self.object_queries, encoded.bev_embed, self.geometry.bev_shape)
        knowledge.bev_embed, knowledge.bev_mask = encoded.bev_embed, pairs.bev_mask
        knowledge.temporal_attention = encoded.temporal_attention
        knowledge.spatial_attention = encoded.spatial_attention
        knowledge.class_logits, knowledge.box_codes = decoded.class_logits, decoded.box_codes
        knowledge.logits = decoded.class_logits[-1]
        knowledge.state = _next_state(encoded, frames)
        if self.training and self.bev_heatmap_head is not None:
            grid = encoded.bev_embed.transpose(1, 2).unflatten(2, self.geometry.bev_shape)
            knowledge.bev_heatmap = self.bev_heatmap_head(grid)
        if self.training and self.image_heatmap_head is not None:
            knowledge.image_heatmap = self.image_heatmap_head(features[0].flatten(0, 1))
        return knowledge

    def _features(self, frames: Frames, knowledge: BEVKnowledge, wants: frozenset[str]) -> list[Tensor]:
        """Image features, (R, N, C, h, w) a level; fills ``backbone`` and ``fpn`` where wanted."""
        images = frames.images if self.grid_mask is None else self.grid_mask(frames.images)
        backbone = self.image_backbone(images.flatten(0, 1))
        levels = self.neck(backbone)
        knowledge.backbone = backbone if "backbone" in wants else None
        knowledge.fpn = levels if "fpn" in wants else None
        return [level.unflatten(0, images.shape[:2]) for level in levels]

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
        exists: list[bool],
        wants: frozenset[str] = frozenset(),
    ) -> tuple[EncoderOutput, VisiblePairs]:
        """From image features to the bird's-eye view.

        Args:
            features: (B, N, C, h, w) a level, finest first.
            frames: their geometry.
            motion: (B, 18) float64 of :func:`bevkd2.modeling.bev.queries.ego_motion`.
            previous_bev: (B, H*W, C) as it left the encoder; None where no sample has a past.
            exists: which samples have a past.
            wants: "temporal_attention", "spatial_attention".
        """
        queries = self.bev_queries.expand(len(motion), -1, -1)
        if self.can_bus_mlp is not None:
            queries = queries + self.can_bus_mlp(motion.float())[:, None]
        pairs = self.geometry.visible_pairs(frames)
        history = self.geometry.history(queries, motion, previous_bev, exists)
        encoded = self.encoder(
            queries,
            self.bev_position(),
            features,
            pairs,
            history,
            want_temporal="temporal_attention" in wants,
            want_spatial="spatial_attention" in wants,
        )
        return encoded, pairs

    def losses(self, knowledge: BEVKnowledge, targets: BEVTargets) -> dict[str, Tensor]:
        """Weighted losses of every decoder layer, and of the heat maps where the model has them."""
        assert knowledge.class_logits is not None and knowledge.box_codes is not None
        assert knowledge.fpn_strides is not None
        losses = self.criterion(knowledge.class_logits, knowledge.box_codes, targets.labels, targets.codes)
        if knowledge.bev_heatmap is not None:
            loss = bev_heatmap_loss(knowledge.bev_heatmap, targets, self.geometry.pc_range)
            losses["loss_bev_heatmap"] = self.bev_heatmap_weight * loss
        if knowledge.image_heatmap is not None:
            loss = image_heatmap_loss(knowledge.image_heatmap, targets, knowledge.fpn_strides[0])
            losses["loss_image_heatmap"] = self.image_heatmap_weight * loss
        return losses

    @torch.no_grad()
    def inference(self, knowledge: BEVKnowledge, inputs: BEVInputs) -> list[dict[str, Any]]:
        """Detections of the last decoder layer, one dict a sample with ``boxes``, ``scores``, ``labels``."""
        assert knowledge.class_logits is not None and knowledge.box_codes is not None
        results = []
        for row in inputs.current.rows:
            boxes, scores, labels = decode_detections(
                knowledge.class_logits[-1, row],
                knowledge.box_codes[-1, row],
                max_detections=self.max_detections,
                score_threshold=self.score_threshold,
                post_center_range=self.post_center_range,
            )
            results.append({"boxes": boxes, "scores": scores, "labels": labels})
        return results

    @torch.no_grad()
    def _stream(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scenes = [sample["scene_token"] for sample in batched_inputs]
        results: dict[int, dict[str, Any]] = {}
        for rows in split_by_time(scenes):
            inputs = self.preprocess([batched_inputs[row] for row in rows])
            state = self._memory.recall(inputs.current.scene_tokens)
            knowledge = self.extract(inputs, state=state)
            assert knowledge.state is not None
            self._memory.store(knowledge.state)
            results.update(zip(rows, self.inference(knowledge, inputs), strict=True))
        self._memory.forget_others(scenes)
        return [results[row] for row in range(len(batched_inputs))]


def _next_state(encoded: EncoderOutput, frames: Frames) -> TemporalState:
    return TemporalState(
        encoded.bev_embed.detach(), frames.can_bus, list(frames.scene_tokens), list(frames.timestamps)
    )
