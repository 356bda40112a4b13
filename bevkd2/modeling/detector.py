"""The contract of a detector: five methods, and Detectron2's ``forward`` in terms of them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.knowledge import Knowledge

Sample = Mapping[str, Any]
"""One sample as the mapper emits it."""


@dataclasses.dataclass(frozen=True)
class FeatureShapes:
    """Channels and strides of what :class:`Knowledge` calls ``backbone`` and ``fpn``."""

    backbone: dict[str, ShapeSpec]
    fpn: list[ShapeSpec]
    """Finest first."""


class Detector(nn.Module):
    """Base of all meta-architectures that can teach or learn.

    ``forward(batched_inputs)`` returns losses by name in training and detections in eval mode.
    """

    knowledge: ClassVar[type[Knowledge]] = Knowledge
    """Class of what :meth:`extract` returns; distillation methods state which they read."""

    @abstractmethod
    def preprocess(self, batched_inputs: Sequence[Sample]) -> Any:
        """Moves samples to the device, normalises, pads and batches; geometry is kept beside the pixels."""

    @abstractmethod
    def targets(self, batched_inputs: Sequence[Sample], inputs: Any) -> Any:
        """Returns what the losses compare with.

        Args:
            batched_inputs: samples with annotations.
            inputs: of :meth:`preprocess`.
        """

    @abstractmethod
    def extract(self, inputs: Any, wants: frozenset[str] = frozenset(), state: Any = None) -> Knowledge:
        """The forward pass.

        Args:
            inputs: of :meth:`preprocess`.
            wants: costly fields to fill, of :data:`bevkd2.modeling.knowledge.WANTS`.
            state: what a temporal detector put into the knowledge of the frame before.
        """

    @abstractmethod
    def feature_shapes(self) -> FeatureShapes:
        """Returns the channels and strides of backbone and neck, known before the first forward pass."""

    @abstractmethod
    def losses(self, knowledge: Any, targets: Any) -> dict[str, Tensor]:
        """Returns scalar losses by name.

        Args:
            knowledge: of :meth:`extract`.
            targets: of :meth:`targets`.
        """

    @abstractmethod
    def inference(self, knowledge: Any, inputs: Any) -> list[dict[str, Any]]:
        """Returns one dict a sample: ``boxes``, ``scores`` (k,) and ``labels`` (k,).

        Args:
            knowledge: of :meth:`extract`.
            inputs: of :meth:`preprocess`.
        """
