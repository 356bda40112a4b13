"""What every distillation method is: a small module that reads named fields and returns named losses."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.config.plugins import add_config_extension
from bevkd2.d2 import Registry
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge

DISTILL_REGISTRY = Registry("DISTILL")
DISTILL_REGISTRY.__doc__ = "Distillation methods by class name, as DISTILL.METHODS lists them."


class DistillMethod(nn.Module):
    """Base of all methods. A subclass sets ``node`` and ``reads`` and implements ``forward``.

    Args:
        cfg: the method's own node, ``cfg.DISTILL.<node>``.
        student: channels and strides of the student's features.
        teacher: of the teacher's.
    """

    node: ClassVar[str]
    """Name of the method's node under ``DISTILL``."""
    knowledge: ClassVar[type[Knowledge]] = Knowledge
    """The class of knowledge that it needs of both detectors."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """The costly fields of :class:`Knowledge` that it needs, of those that ``costly_fields()`` lists."""

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        costly = cls.knowledge.costly_fields()
        if unknown := cls.reads - costly:
            raise TypeError(f"{cls.__name__}.reads names {sorted(unknown)}; expected of {sorted(costly)}")

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the method's keys to its node; every method has WEIGHT."""
        node.WEIGHT = 1.0  # multiplied by DISTILL.FACTOR

    @abstractmethod
    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Compares what the two know.

        Args:
            student: the student's knowledge, with gradient.
            teacher: the teacher's, without.
            targets: the student's, as its ``targets`` returns them.

        Returns:
            Unweighted scalar losses (float32) by name; the Distiller multiplies them by the weights.
        """


def register_method(cls: type[DistillMethod]) -> type[DistillMethod]:
    """Class decorator: registers a method and lets it add its node to every config made from now on."""
    DISTILL_REGISTRY.register(cls)

    def extend(cfg: FvcoreNode) -> None:
        node = CfgNode()
        cls.add_config(node)
        cfg.DISTILL[cls.node] = node

    add_config_extension(extend)
    return cls
