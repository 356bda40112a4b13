"""The base class of all detectors: what a subclass implements, and what all of them share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.d2 import Backbone, ShapeSpec, build_backbone
from bevkd2.modeling.backbones.pre_activation import PreActivationBackbone
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.modeling.necks import FPN, Neck
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.modeling.sample import Sample

if TYPE_CHECKING:
    from bevkd2.modeling.deployable import DeployableDetector

InputsT = TypeVar("InputsT")
TargetsT = TypeVar("TargetsT")
KnowledgeT = TypeVar("KnowledgeT", bound=Knowledge)


@dataclasses.dataclass(frozen=True)
class BEVShape:
    """Shape of a bird's-eye view and of the encoder that makes it."""

    channels: int
    shape: tuple[int, int]
    """Rows and columns."""
    layers: int = 0
    """Encoder layers whose outputs the knowledge can hold."""


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """Shape of a decoder of object queries."""

    channels: int
    layers: int
    queries: int


@dataclasses.dataclass(frozen=True)
class HeadTowers:
    """Shape of the two stacks of convolutions of a dense head, one for classes and one for boxes."""

    channels: int
    """Of every convolution."""
    layers: int


@dataclasses.dataclass(frozen=True)
class FeatureShapes:
    """Channels, strides and grids of what a detector's knowledge holds, known when the model is built."""

    backbone: dict[str, ShapeSpec]
    """By name, as :attr:`Knowledge.backbone`."""
    fpn: list[ShapeSpec]
    """Finest first, as :attr:`Knowledge.fpn`."""
    bev: BEVShape | None = None
    """None for a detector without a bird's-eye view."""
    decoder: DecoderShape | None = None
    """None for a detector without object queries."""
    towers: HeadTowers | None = None
    """None for a detector without a dense head of towers."""


def detector_arguments(
    cfg: CfgNode, build_neck: Callable[[CfgNode, dict[str, ShapeSpec]], Neck] = FPN.from_config
) -> dict[str, Any]:
    """Builds image backbone, neck and pixel normaliser.

    Args:
        cfg: the whole config; reads MODEL.BACKBONE, MODEL.PIXEL_*, MODEL.SIZE_DIVISIBILITY and the keys of
            the neck.
        build_neck: makes a neck of the config and the shapes of the backbone's features by name; by default
            the feature pyramid of MODEL.FPN.

    Returns:
        The keyword arguments of :class:`Detector`.

    Raises:
        ValueError: the neck reads what the backbone lacks, or wrong pixel statistics.
    """
    backbone = build_backbone(cfg)
    return {
        "image_backbone": backbone,
        "neck": build_neck(cfg, backbone.output_shape()),
        "pixels": PixelNormalizer.from_config(cfg),
    }


class Detector(nn.Module, ABC, Generic[InputsT, TargetsT, KnowledgeT]):
    """Base of all meta-architectures that can teach or learn.

    A subclass names its ``knowledge`` class and implements ``preprocess``, ``targets``, ``extract``,
    ``losses`` and ``inference``. ``forward`` is Detectron2's: losses by name in training, detections in eval
    mode.
    """

    knowledge: ClassVar[type[Knowledge]]
    """The class that ``extract`` returns."""
    image_backbone: Backbone
    neck: Neck

    def __init__(self, *, image_backbone: Backbone, neck: Neck, pixels: PixelNormalizer) -> None:
        """Keeps the shared parts.

        Args:
            image_backbone: images (R, 3, H, W) to features by name.
            neck: those to a list of levels with known ``strides``.
            pixels: images to what the backbone was trained on.
        """
        super().__init__()
        self.image_backbone, self.neck, self.pixels = image_backbone, neck, pixels

    @abstractmethod
    def preprocess(self, batched_inputs: Sequence[Sample]) -> InputsT:
        """Moves samples to the device, normalises, pads and batches; geometry is kept beside the pixels.

        Args:
            batched_inputs: of the mapper, one or more.
        """

    @abstractmethod
    def targets(self, batched_inputs: Sequence[Sample], inputs: InputsT) -> TargetsT:
        """Returns what the losses compare with.

        Args:
            batched_inputs: samples with annotations.
            inputs: of :meth:`preprocess`.
        """

    @abstractmethod
    def extract(self, inputs: InputsT, wants: frozenset[str] = frozenset(), state: Any = None) -> KnowledgeT:
        """Runs the model up to its raw predictions.

        Args:
            inputs: of :meth:`preprocess`.
            wants: fields to fill beside those that are not costly.
            state: what a temporal detector put into the knowledge of the frame before.

        Raises:
            ValueError: an unknown want.
        """

    def extract_only(self, inputs: InputsT, wants: frozenset[str], state: Any = None) -> KnowledgeT:
        """Runs the model as far as ``wants`` need it: nothing else is going to be read.

        A teacher is run so. This base runs all; a detector with parts that can be left out overrides it.

        Args:
            inputs: of :meth:`preprocess`.
            wants: fields to fill.
            state: of :meth:`extract`.

        Raises:
            ValueError: an unknown want.
        """
        return self.extract(inputs, wants, state)

    @abstractmethod
    def losses(self, knowledge: KnowledgeT, targets: TargetsT) -> dict[str, Tensor]:
        """Returns weighted scalar losses by name.

        Args:
            knowledge: of :meth:`extract`.
            targets: of :meth:`targets`.
        """

    @abstractmethod
    def inference(self, knowledge: KnowledgeT, inputs: InputsT) -> list[dict[str, Any]]:
        """Returns one dict per sample: ``boxes``, ``scores`` (k,) and ``labels`` (k,).

        Args:
            knowledge: of :meth:`extract`.
            inputs: of :meth:`preprocess`.
        """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Returns losses by name in training, one dict of detections per sample in eval mode.

        Args:
            batched_inputs: samples as the mapper emits them, with annotations in training.
        """
        if not self.training:
            with torch.no_grad():
                return self.detect(batched_inputs)
        samples = self.augment(batched_inputs)
        inputs = self.preprocess(samples)
        return self.losses(self.extract(inputs), self.targets(samples, inputs))

    def augment(self, batched_inputs: Sequence[Sample]) -> list[Sample]:
        """Draws the random numbers of the model's own augmentation of a training batch.

        They go into copies of the samples, so that in distillation teacher and student get the same
        ones. A detector without augmentation of its own returns the samples as they are.

        Args:
            batched_inputs: of the mapper; not changed.
        """
        return list(batched_inputs)

    def copy_augmentation(self, source: Sample, target: Sample) -> Sample:
        """Returns ``target`` with what :meth:`augment` drew for ``source``.

        Args:
            source: a sample after :meth:`augment`.
            target: a sample of the same frame, maybe of another image size.
        """
        return target

    def random_settings(self) -> list[str]:
        """Returns the settings by which :meth:`augment` changes samples at random, as text; here none."""
        return []

    def check_inherited(self, teacher: Detector[Any, Any, Any], names: Sequence[str]) -> None:
        """Checks that parameters taken over from a teacher mean the same here; the base knows no reason not.

        Args:
            teacher: the detector that they are from.
            names: of the parameters in the state dict.

        Raises:
            ValueError: they mean something else, though their shapes are the same.
        """

    def detect(self, batched_inputs: Sequence[Sample]) -> list[dict[str, Any]]:
        """Returns the detections of each sample; a temporal detector overrides it to keep its state.

        Args:
            batched_inputs: of the mapper, one or more.
        """
        inputs = self.preprocess(batched_inputs)
        return self.inference(self.extract(inputs), inputs)

    def deployable(self, image_size: tuple[int, int]) -> DeployableDetector:
        """Returns the form of this detector that ``bevkd2 export`` writes; the two share their parameters.

        A detector that can be exported implements it.

        Args:
            image_size: height and width in pixels of the images that it will get.

        Raises:
            ValueError: the detector has none.
        """
        raise ValueError(
            f"{type(self).__name__} cannot be exported: it has no deployable form. Implement its method "
            "deployable(image_size), which returns a bevkd2.modeling.DeployableDetector (docs/deployment.md)"
        )

    def run_backbone(
        self, images: Tensor, image_sizes: Tensor, wants: frozenset[str]
    ) -> tuple[list[Tensor], KnowledgeT]:
        """Checks the wants, and runs backbone and neck: the first step of every ``extract``.

        Args:
            images: (R, 3, H, W), normalised and padded.
            image_sizes: (R, 2) height and width in pixels before padding.
            wants: of :meth:`extract`.

        Returns:
            The neck's levels (R, C, h, w), finest first, and a knowledge with the shared fields filled.

        Raises:
            ValueError: an unknown want.
        """
        self.knowledge.fields_to_fill(wants, partial=True)
        pre_activation = None
        if "pre_activation" in wants and isinstance(self.image_backbone, PreActivationBackbone):
            backbone, pre_activation = self.image_backbone.forward_with_pre_activation(images)
        else:
            backbone = self.image_backbone(images)
        levels = self.neck(backbone)
        knowledge: Any = self.knowledge(
            backbone=backbone if "backbone" in wants else None,
            pre_activation=pre_activation,
            fpn=levels if "fpn" in wants else None,
            fpn_strides=self.neck.strides,
            image_sizes=image_sizes,
        )
        return levels, knowledge

    def filled_fields(self) -> frozenset[str]:
        """Returns the fields of the knowledge that ``extract`` can fill.

        A distillation method that requires another one is refused when the model is built. The base counts
        the fields that are not costly and the features of backbone and neck; a detector that fills more
        costly fields, or leaves out some of the others, overrides it.
        """
        shared = {"backbone", "fpn"}
        if isinstance(self.image_backbone, PreActivationBackbone):
            shared.add("pre_activation")
        names = frozenset(field.name for field in dataclasses.fields(self.knowledge))
        return names - self.knowledge.costly_fields() | shared

    @property
    def device(self) -> torch.device:
        """Returns the device of the model."""
        return self.pixels.device

    def feature_shapes(self) -> FeatureShapes:
        """Returns the channels and strides of backbone and neck, known before the first forward pass."""
        levels = [ShapeSpec(channels=self.neck.out_channels, stride=stride) for stride in self.neck.strides]
        return FeatureShapes(backbone=self.image_backbone.output_shape(), fpn=levels)

    def inference_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that detections depend on; a detector leaves out heads of training alone."""
        return list(self.parameters())

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters whose learning rate SOLVER.BACKBONE_MULTIPLIER multiplies."""
        return list(self.image_backbone.parameters())
