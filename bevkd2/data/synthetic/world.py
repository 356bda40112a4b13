"""Base class of the settings of synthetic worlds, and the function that writes a world."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bevkd2.data.synthetic.parallel import check_workers
from bevkd2.data.synthetic.staging import write_once

_LEAST_SIDE, _GREATEST_SIDE = 16, 4096  # pixels


def check_ranges(config: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Checks that numbers are in their range.

    Args:
        config: the settings that have the fields.
        limits: smallest and largest value, by field.

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
    """Checks that an image size is a (width, height) in pixels.

    Args:
        config: the settings that the message names.
        size: the value of ``image_size``.

    Raises:
        ValueError: it does not have two numbers, or one of them is out of its range.
    """
    if len(size) != 2 or not all(_LEAST_SIDE <= side <= _GREATEST_SIDE for side in size):
        raise ValueError(
            f"{type(config).__name__}.image_size is {size}, expected (width, height) of {_LEAST_SIDE} to "
            f"{_GREATEST_SIDE} pixels"
        )


def check_difficulty(difficulty: str, presets: Collection[str]) -> None:
    """Checks that a difficulty is one of the presets.

    Raises:
        ValueError: it is not one of them.
    """
    if difficulty not in presets:
        raise ValueError(f"difficulty is {difficulty!r}, expected one of {', '.join(presets)}")


W = TypeVar("W", bound="SyntheticWorld")


@dataclasses.dataclass(frozen=True)
class SyntheticWorld(ABC):
    """Settings of a synthetic world: a frozen dataclass. Equal settings give equal files, byte for byte.

    A subclass adds fields, and implements ``fill``, which writes the files.

    Attributes:
        seed: every scene or frame has its own random generator, seeded by (seed, its index).
        image_size: (width, height) of all images in pixels; each layout has a default.
    """

    layout: ClassVar[str]
    """The layout of the files: "nuscenes" or "kitti"."""
    generator_version: ClassVar[int]
    """Must be incremented if the same settings give other files than before."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Difficulty -> the fields that it sets; every layout has "easy", "medium" and "hard"."""
    options: ClassVar[Mapping[str, tuple[str, str]]]
    """Options of ``bevkd2 make-synthetic`` for this layout only: flag -> (field, help text)."""

    if TYPE_CHECKING:  # a field of every layout, each with its own default
        image_size: tuple[int, int]

    def __post_init__(self) -> None:
        check_ranges(self, self.limits())
        check_image_size(self, self.image_size)

    @abstractmethod
    def limits(self) -> dict[str, tuple[float, float]]:
        """Returns the smallest and the largest value of each numeric field."""

    @abstractmethod
    def splits(self) -> dict[str, list[str]]:
        """Returns the names of the scenes or frames of each split."""

    @abstractmethod
    def fill(self, workers: int, progress: bool, root: Path) -> None:
        """Writes all files but ``synthetic.json``.

        Args:
            workers: number of processes, at least 1; the files do not depend on it.
            progress: show a progress bar.
            root: an empty folder.
        """

    @abstractmethod
    def describe(self) -> str:
        """Returns a text with the settings that a config needs to read the world."""

    @classmethod
    def preset(cls: type[W], difficulty: str, **overrides: Any) -> W:
        """Returns the settings of a difficulty.

        Args:
            difficulty: "easy", "medium" or "hard".
            **overrides: fields that replace those of the preset.

        Raises:
            ValueError: the difficulty is unknown, or a field is out of its range.
        """
        check_difficulty(difficulty, cls.presets)
        return cls(**{**cls.presets[difficulty], **overrides})

    def to_json(self) -> dict[str, Any]:
        """Returns layout, version of the generator and fields, as stored in ``synthetic.json``."""
        fields = {**dataclasses.asdict(self), "image_size": list(self.image_size)}
        marker = {"generator_version": self.generator_version, "config": fields}
        # nuScenes was the first layout, and its files do not name it.
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
    ``out``, which is renamed when all files are complete. An existing world of the same settings is kept.

    Args:
        config: settings of the world.
        out: root folder of the data set.
        workers: number of processes.
        overwrite: replace a synthetic world of other settings.
        progress: show a progress bar.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` has another world and ``overwrite`` is off, or has files of something else.
        ValueError: ``workers`` is not positive.
    """
    check_workers(workers)
    return write_once(out, config.to_json(), overwrite, functools.partial(config.fill, workers, progress))
