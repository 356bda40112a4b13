"""The registry of data formats, and what packages below ``bevkd2.data`` read of the format of a config.

Models and distillation need the class names of ``DATASETS.FORMAT``, but lie below the package that knows the
formats. So the registry is here, and knows no format: :mod:`bevkd2.data.format` says what a format is, and
each format registers itself when its package is imported. ``get_cfg`` imports the built-in ones and those of
installed plugins, so they are registered wherever there is a config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol, TypeVar, cast

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config.plugins import add_config_extension


class FormatTraits(Protocol):
    """The part of a ``DataFormat`` that packages below ``bevkd2.data`` read; documented there."""

    name: ClassVar[str]
    default_classes: ClassVar[tuple[str, ...]]
    known_classes: ClassVar[tuple[str, ...]]
    fixed_classes: ClassVar[bool]
    single_images: ClassVar[bool]

    def add_config(self, cfg: FvcoreNode) -> None:
        """Adds the format's keys to the default config.

        Args:
            cfg: the config with all common keys; changed in place.
        """


F = TypeVar("F")


class FormatRegistry:
    """The data formats that ``DATASETS.FORMAT`` may name."""

    def __init__(self) -> None:
        self._formats: dict[str, FormatTraits] = {}

    def register(self) -> Callable[[type[F]], type[F]]:
        """Returns a class decorator that registers a data format.

        One object of the class is made, and adds its keys to every config that ``get_cfg`` returns from then
        on.

        Raises:
            ValueError: another class has registered the same name.
        """

        def add(cls: type[F]) -> type[F]:
            form = cast(FormatTraits, cls())
            found = self._formats.get(form.name)
            if found is not None:
                raise ValueError(
                    f"data format {form.name!r} of {cls.__module__}.{cls.__qualname__} is registered "
                    f"already, by {type(found).__module__}.{type(found).__qualname__}; give it another name"
                )
            self._formats[form.name] = form
            add_config_extension(form.add_config)
            return cls

        return add

    def get(self, name: str) -> FormatTraits:
        """Returns the format of a name.

        Raises:
            ValueError: no format of that name is registered.
        """
        if name not in self._formats:
            raise ValueError(
                f"DATASETS.FORMAT is {name!r}, expected one of {', '.join(self._formats)}; a format of a "
                "package of your own is registered when --import PACKAGE imports it"
            )
        return self._formats[name]

    def __iter__(self) -> Iterator[FormatTraits]:
        return iter(self._formats.values())


DATA_FORMAT_REGISTRY = FormatRegistry()
"""Every format that ``DATASETS.FORMAT`` may name."""


def class_names(cfg: FvcoreNode, *, single_images: bool | None = None) -> tuple[str, ...]:
    """Returns the names of the classes that are detected; the label of a class is its place.

    Args:
        cfg: the config; reads ``DATASETS.FORMAT`` and ``DATASETS.CLASSES``.
        single_images: what samples the caller can read: of a monocular detector True, of a multi-view
            detector False; None: any.

    Raises:
        ValueError: the format is unknown, ``CLASSES`` is not a list of its classes, each once, or the caller
            cannot read the format's samples.
    """
    form, names = DATA_FORMAT_REGISTRY.get(cfg.DATASETS.FORMAT), tuple(cfg.DATASETS.CLASSES)
    if single_images is not None and single_images != form.single_images:
        readable = [other.name for other in DATA_FORMAT_REGISTRY if other.single_images == single_images]
        reads = "monocular models read single images"
        if not single_images:
            reads = "multi-view models read frames of several cameras"
        raise ValueError(f"DATASETS.FORMAT is {form.name!r}, expected one of {', '.join(readable)}: {reads}")
    if form.fixed_classes and names:
        raise ValueError(
            f"DATASETS.CLASSES is {list(names)}, but the classes of format {form.name!r} are fixed: "
            f"{', '.join(form.default_classes)}; set it to [], or choose another DATASETS.FORMAT"
        )
    unknown = [name for name in names if form.known_classes and name not in form.known_classes]
    if unknown:
        raise ValueError(
            f"DATASETS.CLASSES has {', '.join(map(repr, unknown))}, expected names of {form.name}: "
            f"{', '.join(form.known_classes)}"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"DATASETS.CLASSES is {list(names)}, expected every name once")
    if not (names or form.default_classes):
        raise ValueError(
            f"DATASETS.CLASSES is [], but format {form.name!r} has no classes of its own; name those that "
            "are to be detected, in the order of the labels"
        )
    return names or form.default_classes


def default_classes(cfg: FvcoreNode) -> tuple[str, ...]:
    """Returns the classes that an empty ``DATASETS.CLASSES`` means, in the order of the labels.

    Args:
        cfg: the config; only ``DATASETS.FORMAT`` is read. Empty where the format has no classes of
            its own.
    """
    return DATA_FORMAT_REGISTRY.get(cfg.DATASETS.FORMAT).default_classes


def stored_classes(cfg: FvcoreNode) -> tuple[str, ...]:
    """Returns the class names to store with a model's weights; none where the format fixes them.

    Args:
        cfg: the model's config.

    Raises:
        ValueError: ``DATASETS.CLASSES`` does not fit the format; see :func:`class_names`.
    """
    fixed = DATA_FORMAT_REGISTRY.get(cfg.DATASETS.FORMAT).fixed_classes
    return () if fixed else class_names(cfg)


def fixed_classes(cfg: FvcoreNode) -> tuple[str, ...]:
    """Returns the class names that the format fixes; none where they are stored with the weights.

    Args:
        cfg: the model's config.

    Raises:
        ValueError: ``DATASETS.CLASSES`` does not fit the format; see :func:`class_names`.
    """
    return () if stored_classes(cfg) else class_names(cfg)
