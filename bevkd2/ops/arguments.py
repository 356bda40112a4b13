"""Checks and conversions of arguments before the compiled ops run."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import library
from .precision import arithmetic_dtype

SpatialShapes = Tensor | Sequence[Sequence[int]]
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# All ops


def check_device(op: str, name: str, tensor: Tensor) -> None:
    """Checks that there are kernels for the tensor's device.

    Args:
        op: the function that the user called.
        name: the argument's name, for the message.
        tensor: the argument.

    Raises:
        ValueError: a device other than cpu, cuda and meta.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{op}: {name} is on {tensor.device}; there are kernels for cpu and cuda")
    if tensor.is_cuda and not library.HAS_CUDA:
        raise RuntimeError(
            f"{op}: {name} is on {tensor.device}, but bevkd2's CUDA ops are not built here "
            f"({library.CUDA_LIBRARY} is missing). Build them with `FORCE_CUDA=1 pip install "
            "--no-build-isolation -e .`, which needs the CUDA toolkit."
        )


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Checks that there are kernels for the tensor's dtype.

    Args:
        op: the function that the user called.
        name: the argument's name, for the message.
        tensor: the argument.

    Raises:
        ValueError: another dtype.
    """
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{op}: {name} is {tensor.dtype}; expected float64, float32, float16 or bfloat16")


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int], layout: str) -> None:
    """Checks that a tensor has the shape that the other arguments imply.

    Args:
        op: the function that the user called.
        name: the argument's name, for the message.
        tensor: the argument.
        expected: its sizes.
        layout: the sizes in words or symbols, for the message.

    Raises:
        ValueError: another shape.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} is {tuple(tensor.shape)}; expected {layout} = {tuple(expected)}")


def refuse_forward_mode(op: str, *tensors: Tensor) -> None:
    """Raises if a tensor has a forward-mode tangent, which torch would drop silently.

    Args:
        op: name of the op in the namespace ``bevkd2``.
        tensors: the differentiable arguments.

    Raises:
        RuntimeError: a tensor has a tangent.
    """
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"bevkd2::{op} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); "
            "use reverse mode, as backward() does"
        )


def integer(op: str, name: str, value: Any) -> int:
    """Returns an integer argument; Python would truncate a float silently.

    Args:
        op: the function that the user called.
        name: the argument's name, for the message.
        value: an integer of Python, numpy or torch (a scalar tensor, or a symbolic size while torch traces).

    Raises:
        ValueError: a float, even a whole one, a bool, or anything else.
    """
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if whole:
        number: int = value
        return number
    if isinstance(value, np.integer) or (isinstance(value, Tensor) and value.dim() == 0 and integral(value)):
        return int(value)
    raise ValueError(f"{op}: {name} is {value!r}; expected an integer")


def grid_shape(op: str, name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Returns the rows and columns of a grid.

    Args:
        op: the function that the user called.
        name: the argument's name, for the message.
        shape: (rows, columns).

    Raises:
        ValueError: not two integers, one is negative, or 2^31 cells and more, which kernels cannot number.
    """
    sizes = [integer(op, name, size) for size in shape]
    if len(sizes) != 2 or sizes[0] < 0 or sizes[1] < 0 or sizes[0] * sizes[1] >= 2**31:
        raise ValueError(
            f"{op}: {name} is {tuple(sizes)}; expected (rows, columns), not negative, of less than 2^31 cells"
        )
    return sizes[0], sizes[1]


def integral(tensor: Tensor) -> bool:
    """Returns whether a tensor holds integers that can be read.

    Args:
        tensor: of any shape; bool does not count, and a meta tensor has no values to read.
    """
    kind = tensor.dtype
    return not (kind == torch.bool or kind.is_floating_point or kind.is_complex or tensor.is_meta)


# Deformable attention


def level_shapes(op: str, spatial_shapes: SpatialShapes) -> list[int]:
    """Returns the levels' shapes as h0, w0, h1, w1, ...

    Args:
        op: the function that the user called.
        spatial_shapes: (h, w) of each level, as a list or an integer tensor (L, 2). Reading a CUDA tensor
            waits for the device.

    Raises:
        ValueError: not (L, 2) integers, or a size below 1.
    """
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or not integral(spatial_shapes):
            raise ValueError(
                f"{op}: spatial_shapes is {tuple(spatial_shapes.shape)} {spatial_shapes.dtype} on "
                f"{spatial_shapes.device}; expected an integer (L, 2) of (h, w) rows, or a list of (h, w)"
            )
        spatial_shapes = spatial_shapes.tolist()
    shapes = []
    for level, shape in enumerate(spatial_shapes):
        sizes = [integer(op, f"spatial_shapes of level {level}", size) for size in shape]
        if len(sizes) != 2 or sizes[0] < 1 or sizes[1] < 1:
            raise ValueError(
                f"{op}: spatial_shapes of level {level} is {tuple(sizes)}; expected (h, w), both >= 1"
            )
        shapes += sizes
    return shapes


def level_starts(shapes: list[int]) -> list[int]:
    """Returns the first pixel of each level in the value maps, for levels stored one after the other.

    Args:
        shapes: h0, w0, h1, w1, ...
    """
    starts, start = [], 0
    for level in range(len(shapes) // 2):
        starts.append(start)
        start += shapes[2 * level] * shapes[2 * level + 1]
    return starts


def check_value(op: str, value: Tensor) -> None:
    """Checks rank, dtype and device of the value maps.

    Args:
        op: the function that the user called.
        value: (B, S, H, D).

    Raises:
        ValueError: another rank or dtype, or a device without kernels.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    if value.dim() != 4:
        raise ValueError(f"{op}: value is {tuple(value.shape)}; expected (batch, pixels, heads, head width)")
    check_floating(op, "value", value)
    check_device(op, "value", value)


def check_dense_levels(op: str, value: Tensor, shapes: list[int]) -> None:
    """Checks that the levels cover the pixels of ``value`` exactly.

    Args:
        op: the function that the user called.
        value: (B, S, H, D).
        shapes: h0, w0, h1, w1, ...

    Raises:
        ValueError: another number of pixels.
    """
    pixels = sum(shapes[2 * i] * shapes[2 * i + 1] for i in range(len(shapes) // 2))
    if value.shape[1] != pixels:
        raise ValueError(
            f"{op}: value has {value.shape[1]} pixels ({tuple(value.shape)}), but spatial_shapes "
            f"{list(zip(shapes[::2], shapes[1::2], strict=True))} need {pixels}"
        )


def check_sampling(
    op: str, value: Tensor, names: tuple[str, str], offsets: Tensor, weights: Tensor, lead: int
) -> None:
    """Checks that offsets and weights fit each other and the value maps.

    Args:
        op: the function that the user called.
        value: (B, S, H, D).
        names: of the arguments ``offsets`` and ``weights``, for the message.
        offsets: (.., H, L, P, 2) offsets or locations.
        weights: (.., H, L, P) weights or logits.
        lead: number of dimensions before H.

    Raises:
        ValueError: shapes that do not fit.
    """
    if weights.dim() != lead + 3 or weights.shape[lead] != value.shape[2]:
        raise ValueError(
            f"{op}: {names[1]} is {tuple(weights.shape)}; expected {lead + 3} dimensions "
            f"(.., heads, levels, points) with value's {value.shape[2]} heads"
        )
    check_shape(op, names[0], offsets, (*weights.shape, 2), f"{names[1]}'s shape and (x, y)")


def to_coordinates(op: str, value: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Returns coordinates and logits in the dtype in which the kernel computes.

    This is also the autocast policy: value may stay in 16 bits, coordinates never do. Gradients come back in
    each tensor's own dtype, through the cast.

    Args:
        op: the function that the user called.
        value: (B, S, H, D), whose dtype decides.
        tensors: locations, references, offsets, weights or logits by their names.

    Raises:
        ValueError: a tensor on another device, not floating, or wider than the arithmetic.
        RuntimeError: a tensor has a forward-mode tangent.
    """
    dtype = arithmetic_dtype(value)
    refuse_forward_mode(op, value, *tensors.values())
    converted = []
    for name, tensor in tensors.items():
        if tensor.device != value.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, value on {value.device}; move one to the other"
            )
        if not tensor.is_floating_point() or arithmetic_dtype(value, tensor) != dtype:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} beside {value.dtype} value; expected {dtype} or narrower"
            )
        converted.append(tensor.to(dtype))
    return converted


def warn_of_16_bits(op: str, name: str, normalised: Tensor) -> None:
    """Warns if normalised coordinates arrive in 16 bits, which have already lost precision.

    Near 1, half a unit in the last place is 2^-12 in float16 and 2^-9 in bfloat16: 0.05 and 0.4 pixels of a
    map 200 pixels wide. An offset in pixels loses far less, 2^-6 pixels below 8 in bfloat16, and is not
    warned of. Compiled code cannot warn, and does not.

    Args:
        op: the function that the user called.
        name: the argument's name.
        normalised: coordinates as fractions of the map.
    """
    if normalised.dtype in (torch.float16, torch.bfloat16) and not torch.compiler.is_compiling():
        warnings.warn(
            f"{op}: {name} is {normalised.dtype}, which rounds a normalised coordinate by up to "
            f"{torch.finfo(normalised.dtype).eps / 4:.1g} of the map; compute it in float32 "
            "(sampling offsets in pixels may be in 16 bits)",
            stacklevel=3,
        )


# Losses of student and teacher


def check_pair(op: str, student: Tensor, teacher: Tensor, **others: Tensor | None) -> None:
    """Checks dtypes and devices of a student, its teacher and what else the kernels read.

    Args:
        op: the function that the user called.
        student: features or logits.
        teacher: features or logits.
        others: further tensors by their names; ``None`` is ignored.

    Raises:
        ValueError: a dtype that is not floating, or tensors on different devices.
        RuntimeError: no kernels for the device, or the student has a forward-mode tangent.
    """
    check_device(op, "student", student)
    refuse_forward_mode(op, student)
    for name, tensor in (("student", student), ("teacher", teacher)):
        check_floating(op, name, tensor)
    for name, other in {"teacher": teacher, **others}.items():
        if other is not None and other.device != student.device:
            raise ValueError(
                f"{op}: {name} is on {other.device}, student on {student.device}; move one to the other"
            )


def check_levels(op: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Checks that student and teacher have as many levels, and that the student's are of one kind.

    Args:
        op: the function that the user called.
        student: features or logits of each level.
        teacher: features or logits of each level.

    Raises:
        ValueError: no level, different numbers of levels, or another dtype or device.
        RuntimeError: see :func:`check_pair`.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(
            f"{op}: {len(student)} levels of the student, {len(teacher)} of the teacher; expected as many of "
            "each, and at least one"
        )
    first = student[0]
    for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        check_pair(op, ours, theirs)
        if (ours.device, ours.dtype) != (first.device, first.dtype):
            raise ValueError(
                f"{op}: level {level} of the student is {ours.dtype} on {ours.device}, level 0 {first.dtype} "
                f"on {first.device}; expected one dtype and device"
            )
