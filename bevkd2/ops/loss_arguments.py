"""What the distillation losses over student and teacher check before they call the compiled ops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_device, refuse_forward_mode

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_pair(op: str, student: Tensor, teacher: Tensor, **others: Tensor | None) -> None:
    """Both are floating, there are kernels for the student's device, and everything lies there.

    Args:
        op: the function that the user called.
        student, teacher: features or logits.
        others: by their names, what else the kernels read.

    Raises:
        ValueError: another dtype, or another device.
        RuntimeError: no kernels for the device, or a forward-mode derivative.
    """
    check_device(op, "student", student)
    refuse_forward_mode(op, student)
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype}; expected float64, float32, float16 or bfloat16"
            )
    for name, other in {"teacher": teacher, **others}.items():
        if other is not None and other.device != student.device:
            raise ValueError(
                f"{op}: {name} is on {other.device}, student on {student.device}; move one to the other"
            )


def check_levels(op: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """There are as many levels of both, each level is a pair, and the student's are of one kind.

    Args:
        op: the function that the user called.
        student, teacher: features or logits of the levels.

    Raises:
        ValueError: another number, dtype or device.
        RuntimeError: as :func:`check_pair`.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(
            f"{op}: {len(student)} levels of the student, {len(teacher)} of the teacher; expected as many of "
            "each, and one at least"
        )
    first = student[0]
    for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        check_pair(op, ours, theirs)
        if (ours.device, ours.dtype) != (first.device, first.dtype):
            raise ValueError(
                f"{op}: level {level} of the student is {ours.dtype} on {ours.device}, level 0 {first.dtype} "
                f"on {first.device}; expected one dtype and device"
            )
