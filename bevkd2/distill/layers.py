"""Which teacher layer a student layer learns from, where their depths differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Check = Callable[[bool, str, str], None]
"""Raises a ValueError about a key, unless the condition is true: (condition, key, found) as
:meth:`bevkd2.distill.methods.DistillMethod.check`."""


def _check(condition: bool, key: str, found: str) -> None:
    if not condition:
        raise ValueError(f"{key}: {found}")


def map_layers(
    num_student: int,
    num_teacher: int,
    explicit: Sequence[Sequence[int]] = (),
    check: Check = _check,
    key: str = "LAYER_MAP",
) -> list[tuple[int, int]]:
    """Pairs student layers with teacher layers.

    Without an explicit map, the student's layers are spread evenly over the teacher's, and the two last
    layers are paired: student layer i learns from teacher layer
    ``ceil((i + 1) * num_teacher / num_student) - 1``.

    Args:
        num_student: number of the student's layers.
        num_teacher: number of the teacher's layers.
        explicit: pairs ``[student layer, teacher layer]``, counted from 0, as in ``LAYER_MAP``.
        check: a method's own check, which names its node in errors.
        key: the name of the setting in errors.

    Returns:
        Pairs (student layer, teacher layer).

    Raises:
        ValueError: a pair that names a layer that is not there.
    """
    if not explicit:
        return [(i, -(-(i + 1) * num_teacher // num_student) - 1) for i in range(num_student)]
    pairs = []
    for pair in explicit:
        check(
            len(pair) == 2 and 0 <= pair[0] < num_student and 0 <= pair[1] < num_teacher,
            key,
            f"{list(pair)} does not name a student layer of 0..{num_student - 1} and a teacher layer of "
            f"0..{num_teacher - 1}",
        )
        pairs.append((int(pair[0]), int(pair[1])))
    return pairs
