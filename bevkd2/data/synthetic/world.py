"""What the settings of every synthetic world share, and how a world is written."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bevkd2.data.synthetic.parallel import check_workers
from bevkd2.data.synthetic.staging import write_once

_LEAST_SIDE, _GREATEST_SIDE = 16, 4096


def check_ranges(config: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuses numbers out of their range.

    Args:
        config: has the fields.
        limits: least and greatest value, by field.

    Raises:
        ValueError: a value is out of its range, or NaN.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value}, expected a number from {low} to {high}"
            )


def check_image_size(config: object, size: tuple[int, ...]) -> None:
    """Refuses a size of images that is no (width, height) in pixels.

    Args:
        config: whose ``image_size`` it is, for the message.
        size: as given.

    Raises:
        ValueError: it is not two numbers, or one of them is out of its range.
    """
    if len(size) != 2 or not all(_LEAST_SIDE <= side <= _GREATEST_SIDE for side in size):
        raise ValueError(
            f"{type(config).__name__}.image_size is {size}, expected (width, height) of {_LEAST_SIDE} to "
            f"{_GREATEST_SIDE} pixels"
        )


def check_difficulty(difficulty: str, presets: Collection[str]) -> None:
    """Refuses a difficulty that is none of the presets.

    Raises:
        ValueError: it is not.
    """
    if difficulty not in presets:
        raise ValueError(f"difficulty is {difficulty!r}, expected one of {', '.join(presets)}")


W = TypeVar("W", bound="SyntheticWorld")


@dataclasses.dataclass(frozen=True)
class SyntheticWorld(ABC):
    """Settings of a synthetic world: a frozen dataclass. Equal settings give equal files, byte for byte.

    A subclass adds the other fields, and writes the files in ``fill``.

    Attributes:
        seed: every scene or frame draws from a generator of its own, seeded by (seed, its index).
        image_size: (width, height) of every image in pixels; each layout has a default.
    """

    layout: ClassVar[str]
    """The layout of the files: "nuscenes" or "kitti"."""
    generator_version: ClassVar[int]
    """Raised whenever the same settings would give other files."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Difficulty -> the fields that it sets; every layout has "easy", "medium" and "hard"."""
    options: ClassVar[Mapping[str, tuple[str, str]]]
    """Options of ``tools/make_synthetic.py`` that this layout alone has: flag -> (field, its meaning)."""

    if TYPE_CHECKING:  # a field of every layout, each with its own default
        image_size: tuple[int, int]

    def __post_init__(self) -> None:
        check_ranges(self, self.limits())
        check_image_size(self, self.image_size)

    @abstractmethod
    def limits(self) -> dict[str, tuple[float, float]]:
        """Returns the least and the greatest value of each number, by field."""

    @abstractmethod
    def splits(self) -> dict[str, list[str]]:
        """Returns the scenes or frames of each split, by its name."""

    @abstractmethod
    def fill(self, workers: int, progress: bool, root: Path) -> None:
        """Writes all files but ``synthetic.json``.

        Args:
            workers: processes, at least 1; the files do not depend on it.
            progress: show a progress bar.
            root: an empty folder.
        """

    @abstractmethod
    def describe(self) -> str:
        """Returns, in words, what a config must say to read the world."""

    @classmethod
    def preset(cls: type[W], difficulty: str, **overrides: Any) -> W:
        """Returns the settings of a difficulty.

        Args:
            difficulty: "easy", "medium" or "hard".
            **overrides: fields that replace the preset's.

        Raises:
            ValueError: another difficulty, or a field out of its range.
        """
        check_difficulty(difficulty, cls.presets)
        return cls(**{**cls.presets[difficulty], **overrides})

    def to_json(self) -> dict[str, Any]:
        """Returns the layout, the generator's version and the fields, as ``synthetic.json`` holds them."""
        fields = {**dataclasses.asdict(self), "image_size": list(self.image_size)}
        marker = {"generator_version": self.generator_version, "config": fields}
        # Worlds in nuScenes layout were made before there was another.
        return marker if self.layout == "nuscenes" else {"format": self.layout, **marker}


def generate(
    config: SyntheticWorld,
    out: str | Path,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a synthetic world.

    The files depend on the settings alone, not on ``workers``. They are written to a temporary folder beside
    ``out`` that is renamed when all is complete. A world of the same settings that is already there is kept.

    Args:
        config: what to make.
        out: root folder of the data set.
        workers: processes.
        overwrite: replace a synthetic world of other settings.
        progress: show a progress bar.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds another world and ``overwrite`` is off, or it holds anything else.
        ValueError: ``workers`` is not positive.
    """
    check_workers(workers)
    return write_once(out, config.to_json(), overwrite, functools.partial(config.fill, workers, progress))
