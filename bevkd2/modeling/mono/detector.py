"""The base class of monocular detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bevkd2.config import CfgNode, class_names, default_classes
from bevkd2.modeling.detector import Detector
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.mono.head import HeadPredictions
from bevkd2.modeling.mono.inputs import MonoInputs, MonoTargets, collate_images, collate_targets
from bevkd2.modeling.sample import Sample


class MonoDetector(Detector[MonoInputs, MonoTargets, MonoKnowledge]):
    """Base of detectors that read one image at a time.

    A subclass implements ``extract``, ``losses`` and ``inference``, and ``assign`` where its assignment of
    objects to locations does not depend on predictions. Samples have the keys ``image`` (3, H,
    W) uint8 RGB, ``cam2img`` (4, 4), ``sample_id``, and in training ``boxes``, ``labels``, ``boxes2d`` and,
    where the data has them, ``attributes``.
    """

    knowledge = MonoKnowledge

    def __init__(self, *, num_classes: int, **shared: Any) -> None:
        """Keeps the shared parts.

        Args:
            num_classes: K.
            **shared: of :class:`Detector`.
        """
        super().__init__(**shared)
        self.num_classes = num_classes

    def preprocess(self, batched_inputs: Sequence[Sample]) -> MonoInputs:
        """Moves to the device, normalises, pads and batches.

        Raises:
            KeyError: a sample lacks a key.
            ValueError: an image or a calibration of the wrong shape or type.
        """
        return collate_images(batched_inputs, self.pixels, self.neck.strides)

    def targets(self, batched_inputs: Sequence[Sample], inputs: MonoInputs) -> MonoTargets:
        """Moves annotations to the device, and assigns objects to locations.

        Raises:
            KeyError: a sample without annotations.
            ValueError: a label that is no class, or a box behind the camera.
        """
        targets = collate_targets(batched_inputs, inputs, self.num_classes)
        targets.assigned = self.assign(targets)
        return targets

    def assign(self, targets: MonoTargets) -> Tensor | None:
        """Returns which object each location has to predict.

        Args:
            targets: of a batch of B images; ``assigned`` is not filled yet.

        Returns:
            (B, Q) int64 as ``MonoTargets.assigned``; None, as here, where predictions decide it.
        """
        return None

    def continue_head(
        self, class_features: Sequence[Tensor], box_features: Sequence[Tensor], layer: int
    ) -> HeadPredictions:
        """Runs the head on features of the middle of its towers, such as another model's.

        A head without towers does not implement it; ``feature_shapes().towers`` is None there.

        Args:
            class_features: (B, C, h, w) per level, finest first: of the class tower after ``layer``
                convolutions, before the ReLU (:class:`bevkd2.modeling.mono.head.TowerFeatures`).
            box_features: of the box tower.
            layer: 1 at least.

        Raises:
            NotImplementedError: the head has no towers.
        """
        raise NotImplementedError(f"{type(self).__name__} has no head with towers")

    def features(self, inputs: MonoInputs, wants: frozenset[str]) -> tuple[list[Tensor], MonoKnowledge]:
        """Runs backbone and neck.

        Args:
            inputs: of :meth:`preprocess`.
            wants: of ``extract``.

        Returns:
            The neck's levels (B, C, h, w), finest first, and a knowledge with the shared fields filled.

        Raises:
            ValueError: an unknown want, or levels of other shapes than their strides say.
        """
        levels, knowledge = self.run_backbone(inputs.images, inputs.image_sizes, wants)
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        if shapes != inputs.grid.shapes:
            raise ValueError(
                f"{type(self).__name__}: the neck's levels are {shapes} for images of {inputs.padded_size}, "
                f"expected {inputs.grid.shapes} by its strides {self.neck.strides}; MODEL.SIZE_DIVISIBILITY "
                "must be a multiple of the backbone's largest stride"
            )
        knowledge.grid = inputs.grid
        return levels, knowledge


def check_prior_classes(cfg: CfgNode, name: str) -> None:
    """Refuses priors whose rows are of other classes, or in another order.

    The rows are of MODEL.<name>.PRIOR_CLASSES. Where that is empty they are of DATASETS.CLASSES, but if those
    are as many as the format's default classes, they are of the default: the number of rows then does not
    show whether they are the inherited ones or new ones.

    Args:
        cfg: the whole config.
        name: node of the priors in MODEL.

    Raises:
        ValueError: the classes of the rows are not DATASETS.CLASSES.
    """
    classes, default = class_names(cfg), default_classes(cfg)
    brought = default if len(classes) == len(default) else classes
    rows_of = tuple(cfg.MODEL[name].PRIOR_CLASSES) or brought
    if rows_of != classes:
        raise ValueError(
            f"MODEL.{name}: the rows of the priors are of {', '.join(rows_of)}, but DATASETS.CLASSES is "
            f"{', '.join(classes)}; give their rows in that order and set MODEL.{name}.PRIOR_CLASSES to it "
            "(`bevkd2 compute-priors` prints both)"
        )
