"""What the three forms of deformable attention check and convert before they call the compiled op."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import library

SpatialShapes = Tensor | Sequence[Sequence[int]]
_VALUE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def level_shapes(op: str, spatial_shapes: SpatialShapes) -> list[int]:
    """h0, w0, h1, w1, ... of the levels. A tensor is read once, which on CUDA waits for the device."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.is_floating_point():
            raise ValueError(
                f"{op}: spatial_shapes is {tuple(spatial_shapes.shape)} {spatial_shapes.dtype}; expected an "
                "integer (L, 2) of (h, w) rows, or a list of (h, w)"
            )
        spatial_shapes = spatial_shapes.tolist()
    shapes = []
    for level, shape in enumerate(spatial_shapes):
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 1:
            raise ValueError(
                f"{op}: spatial_shapes of level {level} is {tuple(shape)}; expected (h, w), both >= 1"
            )
        shapes += [int(shape[0]), int(shape[1])]
    return shapes


def level_starts(shapes: list[int]) -> list[int]:
    """The first row of each level in value, where levels lie one behind the other."""
    starts, start = [], 0
    for level in range(len(shapes) // 2):
        starts.append(start)
        start += shapes[2 * level] * shapes[2 * level + 1]
    return starts


def check_value(op: str, value: Tensor) -> None:
    """Rank, dtype and device of the value maps."""
    if value.dim() != 4:
        raise ValueError(f"{op}: value is {tuple(value.shape)}; expected (batch, pixels, heads, head width)")
    if value.dtype not in _VALUE_DTYPES:
        raise ValueError(f"{op}: value is {value.dtype}; expected float64, float32, float16 or bfloat16")
    check_device(op, "value", value)


def check_device(op: str, name: str, tensor: Tensor) -> None:
    """There are kernels for the tensor's device here."""
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{op}: {name} is on {tensor.device}; there are kernels for cpu and cuda")
    if tensor.is_cuda and not library.HAS_CUDA:
        raise RuntimeError(
            f"{op}: {name} is on {tensor.device}, but bevkd2's CUDA ops are not built here "
            f"({library.CUDA_LIBRARY} is missing). Build them with `FORCE_CUDA=1 pip install "
            "--no-build-isolation -e .`, which needs the CUDA toolkit."
        )


def check_dense_levels(op: str, value: Tensor, shapes: list[int]) -> None:
    """The levels fill value's pixels exactly."""
    pixels = sum(shapes[2 * i] * shapes[2 * i + 1] for i in range(len(shapes) // 2))
    if value.shape[1] != pixels:
        raise ValueError(
            f"{op}: value has {value.shape[1]} pixels ({tuple(value.shape)}), but spatial_shapes "
            f"{list(zip(shapes[::2], shapes[1::2], strict=True))} need {pixels}"
        )


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int], layout: str) -> None:
    """A tensor has the shape that the others imply."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} is {tuple(tensor.shape)}; expected {layout} = {tuple(expected)}")


def check_sampling(
    op: str, value: Tensor, names: tuple[str, str], offsets: Tensor, weights: Tensor, lead: int
) -> None:
    """Offsets (.., H, L, P, 2) and weights (.., H, L, P) fit each other and value; `lead` dims precede H."""
    if weights.dim() != lead + 3 or weights.shape[lead] != value.shape[2]:
        raise ValueError(
            f"{op}: {names[1]} is {tuple(weights.shape)}; expected {lead + 3} dimensions "
            f"(.., heads, levels, points) with value's {value.shape[2]} heads"
        )
    check_shape(op, names[0], offsets, (*weights.shape, 2), f"{names[1]}'s shape and (x, y)")


def to_coordinates(op: str, value: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Coordinates and logits in the dtype that the kernel computes in: float64 where value is, else float32.

    This is the autocast policy too: value may stay in 16 bits, coordinates never do. Gradients come back in
    each tensor's own dtype, through the cast.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    refuse_forward_mode(op, value, *tensors.values())
    converted = []
    for name, tensor in tensors.items():
        if tensor.device != value.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, value on {value.device}; move one to the other"
            )
        if not tensor.is_floating_point() or (tensor.dtype == torch.float64 and dtype != torch.float64):
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} beside {value.dtype} value; expected {dtype} or narrower"
            )
        converted.append(tensor.to(dtype))
    return converted


def warn_of_16_bits(op: str, name: str, normalised: Tensor) -> None:
    """Warns where normalised coordinates come in 16 bits: what they lost cannot be computed back.

    Near 1, half a unit in the last place is 2^-12 in float16 and 2^-9 in bfloat16: 0.05 and 0.4 pixels of a
    map 200 wide. An offset in pixels loses far less, 2^-6 pixels below 8 in bfloat16: no warning of that.
    Compiled code, which cannot warn, does not.
    """
    if normalised.dtype in (torch.float16, torch.bfloat16) and not torch.compiler.is_compiling():
        warnings.warn(
            f"{op}: {name} is {normalised.dtype}, which rounds a normalised coordinate by up to "
            f"{torch.finfo(normalised.dtype).eps / 4:.1g} of the map; compute it in float32 "
            "(sampling offsets in pixels may be in 16 bits)",
            stacklevel=3,
        )


def gradient_like(tensor: Tensor, needed: bool) -> Tensor:
    """For fake kernels: the gradient of a tensor, or an empty tensor where nobody needs it."""
    return tensor.new_empty(tensor.shape if needed else (0,))


def refuse_forward_mode(op: str, *tensors: Tensor) -> None:
    """Raises for tensors with a forward-mode tangent, which torch would drop without a word."""
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"bevkd2::{op} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); "
            "use reverse mode, as backward() does"
        )


def refuse_double_backward(op: str) -> None:
    """Give a backward op a formula that raises: without one, torch would return wrong second derivatives."""

    def raise_error(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(
            f"bevkd2::{op} has no second derivative; do not use create_graph=True through this op"
        )

    torch.library.register_autograd(f"bevkd2::{op}", raise_error)
