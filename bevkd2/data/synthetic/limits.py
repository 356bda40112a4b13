"""Checks of the settings of synthetic worlds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
