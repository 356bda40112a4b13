"""What every distillation method is: a small module that reads named fields and returns losses."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.config.plugins import add_config_extension
from bevkd2.d2 import Registry
from bevkd2.distill.schedule import Progress
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import Knowledge

DISTILL_REGISTRY = Registry("DISTILL")
DISTILL_REGISTRY.__doc__ = "Distillation methods by class name, as DISTILL.METHODS lists them."

OptionT = TypeVar("OptionT", bound=str)
KnowledgeT = TypeVar("KnowledgeT", bound=Knowledge)


class DistillMethod(nn.Module, ABC, Generic[KnowledgeT]):
    """Base of all methods. A subclass sets ``node`` and implements ``forward``.

    It states ``knowledge`` and ``requires`` where it reads more than what every detector's knowledge has.
    Where its settings decide what it reads, its constructor sets both on the instance.

    Args:
        cfg: the method's own node, ``cfg.DISTILL.<node>``.
        student: channels and strides of the student's features.
        teacher: of the teacher's.
    """

    node: ClassVar[str]
    """Name of the method's node under ``DISTILL``; in lower case, of its loss."""
    knowledge: type[Knowledge] = Knowledge
    """What student and teacher must both return; checked when the model is built."""
    requires: frozenset[str] = frozenset()
    """Fields of ``knowledge`` that both must fill; checked when the model is built. A teacher computes only
    what methods require."""
    progress: Progress = Progress()
    """Where in training the step is; the Distiller sets it before each forward pass."""

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _check_fields(cls.__name__, cls.knowledge, cls.requires)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the method's keys to its node; every method has WEIGHT, WARMUP and DECAY."""
        node.WEIGHT = 1.0  # multiplied by DISTILL.FACTOR
        node.WARMUP = 0.0  # share of the iterations, at the beginning, over which WEIGHT rises from 0
        node.DECAY = 0.0  # share of the iterations, at the end, over which WEIGHT falls to 0

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Receives the two detectors, once, when the Distiller is built, and checks what can be checked then.

        A method that runs a part of a detector, such as its decoder on other queries, overrides it and keeps
        what it needs in a tuple, so that the detector does not become a submodule of the method.

        Args:
            student: the detector that is trained.
            teacher: the frozen one.

        Raises:
            ValueError: they do not fit the method, or each other.
        """
        name = type(self).__name__
        for role, detector in (("student", student), ("teacher", teacher)):
            if not issubclass(detector.knowledge, self.knowledge):
                raise ValueError(
                    f"DISTILL.METHODS: {name} reads {self.knowledge.__name__}, but the {role}, a "
                    f"{type(detector).__name__}, returns {detector.knowledge.__name__}; leave {name} out or "
                    f"use a detector that returns {self.knowledge.__name__}"
                )
        _check_fields(name, self.knowledge, self.requires)
        for role, detector in (("student", student), ("teacher", teacher)):
            if missing := sorted(self.requires - detector.filled_fields()):
                raise ValueError(
                    f"DISTILL.METHODS: {name} requires {', '.join(missing)}, which the {role}, a "
                    f"{type(detector).__name__}, does not fill; leave {name} out, or use a detector that "
                    "names it in filled_fields()"
                )

    @classmethod
    def one_of(cls, cfg: FvcoreNode, key: str, legal: Iterable[OptionT]) -> OptionT:
        """Returns a setting that names one of several options.

        Args:
            cfg: the method's node.
            key: the setting.
            legal: the options.

        Raises:
            ValueError: it is not one of ``legal``.
        """
        value, options = str(cfg[key]), {str(option): option for option in legal}
        cls.check(value in options, key, f"{value!r}; expected one of {', '.join(options)}")
        return options[value]

    @classmethod
    def check(cls, condition: bool, key: str, found: str) -> None:
        """Raises a ValueError that begins with the key's full name, unless ``condition`` is true.

        Args:
            condition: what must be true of the setting.
            key: the key in the method's node; empty: the node as a whole.
            found: the value found, what was expected, and the remedy.
        """
        if not condition:
            raise ValueError(f"DISTILL.{cls.node}{f'.{key}' if key else ''}: {found}")

    @abstractmethod
    def forward(self, student: KnowledgeT, teacher: KnowledgeT, targets: Any) -> Tensor | dict[str, Tensor]:
        """Compares what the two know.

        Args:
            student: the student's knowledge, with gradient.
            teacher: the teacher's, without.
            targets: the student's, as its ``targets`` returns them.

        Returns:
            An unweighted scalar loss (float32), or several by name; the Distiller multiplies them by the
            weights. A single loss is named as the node, in lower case.
        """


def _check_fields(name: str, knowledge: type[Knowledge], requires: frozenset[str]) -> None:
    fields = {field.name for field in dataclasses.fields(knowledge)}
    if unknown := requires - fields:
        raise TypeError(
            f"{name}.requires names {sorted(unknown)}; expected fields of {knowledge.__name__}: "
            f"{', '.join(sorted(fields))}"
        )


def register_method(cls: type[DistillMethod[Any]]) -> type[DistillMethod[Any]]:
    """Registers a method and lets it add its node to every config made from now on; a class decorator.

    Args:
        cls: the method's class; its ``node`` names the node below DISTILL.

    Returns:
        The class, unchanged.
    """
    DISTILL_REGISTRY.register(cls)

    def extend(cfg: FvcoreNode) -> None:
        node = CfgNode()
        cls.add_config(node)
        cfg.DISTILL[cls.node] = node

    add_config_extension(extend)
    return cls
