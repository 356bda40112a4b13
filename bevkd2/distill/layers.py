"""Which teacher layer a student layer learns from, where their depths differ."""

from __future__ import annotations

from collections.abc import Sequence


def map_layers(
    num_student: int, num_teacher: int, explicit: Sequence[Sequence[int]] = ()
) -> list[tuple[int, int]]:
    """Pairs student layers with teacher layers.

    Without an explicit map, the student's layers are spread evenly over the teacher's and last meets last:
    student layer i learns from teacher layer ``ceil((i + 1) * num_teacher / num_student) - 1``.

    Args:
        num_student: number of the student's layers.
        num_teacher: number of the teacher's layers.
        explicit: pairs ``[student layer, teacher layer]``, counted from 0, as in ``LAYER_MAP``.

    Returns:
        Pairs (student layer, teacher layer).

    Raises:
        ValueError: a pair that names a layer that is not there.
    """
    if not explicit:
        return [(i, -(-(i + 1) * num_teacher // num_student) - 1) for i in range(num_student)]
    pairs = []
    for pair in explicit:
        if len(pair) != 2 or not (0 <= pair[0] < num_student and 0 <= pair[1] < num_teacher):
            raise ValueError(
                f"LAYER_MAP: {list(pair)} does not name a student layer of 0..{num_student - 1} "
                f"and a teacher layer of 0..{num_teacher - 1}"
            )
        pairs.append((int(pair[0]), int(pair[1])))
    return pairs
