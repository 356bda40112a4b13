"""The base class of multi-view detectors, with a memory of each scene's last frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bevkd2.modeling.bev.decoder import DecoderOutput
from bevkd2.modeling.bev.inputs import (
    BEVInputs,
    BEVTargets,
    Frames,
    collate_frames,
    collate_history,
    collate_targets,
)
from bevkd2.modeling.bev.memory import SceneMemory, split_by_time
from bevkd2.modeling.detector import BEVShape, Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.modeling.sample import Sample


class MultiViewDetector(Detector[BEVInputs, BEVTargets, BEVKnowledge]):
    """Base of detectors that read the cameras of a rig together.

    A subclass implements ``extract``, ``losses`` and ``inference``. Samples have the keys ``images`` (N, 3,
    H, W) uint8 RGB, ``lidar2img`` (N, 4, 4), ``can_bus`` (18,), ``scene_token``, ``timestamp``, optionally
    ``history`` (a list of such frames, oldest first) and ``grid_mask`` (a pattern that blanks pixels of the
    current frame), and in training ``boxes`` and ``labels``.

    In eval mode, a detector whose knowledge has a ``state`` gets back the state of the scene's last frame:
    frames of a scene are to be given in order. With ``clear_memory`` it gets none: the scores then show what
    the history is worth.
    """

    knowledge = BEVKnowledge

    def __init__(
        self,
        *,
        num_cameras: int,
        num_classes: int,
        bev_shape: tuple[int, int] | None = None,
        clear_memory: bool = False,
        **shared: Any,
    ) -> None:
        """Keeps the shared parts.

        Args:
            num_cameras: N.
            num_classes: K.
            bev_shape: rows and columns of ``bev_embed``; None for a detector without a bird's-eye view.
            clear_memory: in eval mode, drop the states before every frame; may be changed at any time.
            **shared: of :class:`Detector`.
        """
        super().__init__(**shared)
        self.num_cameras, self.num_classes, self.bev_shape = num_cameras, num_classes, bev_shape
        self.clear_memory = clear_memory
        self._memory = SceneMemory()

    def train(self, mode: bool = True) -> MultiViewDetector:
        """Sets the mode, and drops the states of the frames that were evaluated before."""
        self._memory = SceneMemory()
        super().train(mode)
        return self

    def preprocess(self, batched_inputs: Sequence[Sample]) -> BEVInputs:
        """Moves to the device, normalises, pads, masks and batches.

        Raises:
            KeyError: a sample lacks a key.
            ValueError: images of the wrong shape, type or number.
        """
        rows = list(range(len(batched_inputs)))
        return BEVInputs(
            current=collate_frames(batched_inputs, rows, self.pixels, self.num_cameras),
            history=collate_history(batched_inputs, self.pixels, self.num_cameras),
        )

    def targets(self, batched_inputs: Sequence[Sample], inputs: BEVInputs) -> BEVTargets:
        """Moves annotations to the device.

        Raises:
            KeyError: a sample without annotations.
            ValueError: a box that no detector could predict, or a label that is no class.
        """
        return collate_targets(batched_inputs, inputs.current, self.num_classes)

    def features(self, frames: Frames, wants: frozenset[str]) -> tuple[list[Tensor], BEVKnowledge]:
        """Runs backbone and neck on all cameras.

        Args:
            frames: one time step of R samples.
            wants: of ``extract``.

        Returns:
            The neck's levels (R, N, C, h, w), finest first, and a knowledge with the shared fields filled.

        Raises:
            ValueError: an unknown want.
        """
        sizes = frames.image_sizes.flatten(0, 1)
        levels, knowledge = self.run_backbone(frames.images.flatten(0, 1), sizes, wants)
        return [level.unflatten(0, frames.images.shape[:2]) for level in levels], knowledge

    def feature_shapes(self) -> FeatureShapes:
        """Returns the shapes of backbone, neck and bird's-eye view.

        ``bev_embed`` is taken to have the neck's channels; a detector where that is otherwise overrides this
        method.
        """
        bev = None if self.bev_shape is None else BEVShape(self.neck.out_channels, self.bev_shape)
        return dataclasses.replace(super().feature_shapes(), bev=bev)

    def decode(
        self, knowledge: BEVKnowledge, object_queries: Tensor, reference_points: Tensor | None = None
    ) -> DecoderOutput:
        """Runs the decoder on queries that are given, such as another model's.

        A detector without object queries does not implement it; ``feature_shapes().decoder`` is
        None there.

        Args:
            knowledge: of :meth:`extract`; its ``bev_embed`` is read.
            object_queries: (Q, 2C), or one set per sample (B, Q, 2C): position first, then content.
            reference_points: (B, Q, 3) where the queries begin, as fractions of the range; None:
                where this detector's own layer puts them.

        Raises:
            NotImplementedError: the detector has no such decoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder of object queries")

    def detect(self, batched_inputs: Sequence[Sample]) -> list[dict[str, Any]]:
        """Returns the detections of each sample; frames of a scene, given in order, use the one before."""
        scenes = [sample["scene_token"] for sample in batched_inputs]
        results: dict[int, dict[str, Any]] = {}
        for rows in split_by_time(scenes):
            inputs = self.preprocess([batched_inputs[row] for row in rows])
            past = None if self.clear_memory else self._memory.recall(inputs.current.scene_tokens)
            knowledge = self.extract(inputs, state=past)
            if knowledge.state is not None:
                self._memory.store(knowledge.state)
            results.update(zip(rows, self.inference(knowledge, inputs), strict=True))
        self._memory.forget_others(scenes)
        return [results[row] for row in range(len(batched_inputs))]
