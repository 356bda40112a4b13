"""Fake kernels and autograd formula of deformable attention from offsets and logits: fused and ragged alike.

Both ops take (value, spatial_shapes, references, offsets, logits, two arguments of their own, return_weights)
and return (out, weights); both backward ops take (grad_out, grad_weights) and the same up to return_weights,
then which gradients are needed and whether value's must be deterministic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arguments import gradient_like, refuse_double_backward

OutShape = Callable[..., tuple[int, ...]]
_DIFFERENTIABLE = (0, 2, 3, 4)  # value, references, offsets, logits


def register_formulas(op: str, out_shape: OutShape) -> None:
    """Give an op and its ``_backward`` fake kernels and autograd formulas.

    Args:
        op: name in the namespace bevkd2.
        out_shape: (value, logits, the op's two own arguments) -> the output's shape.
    """

    def fake(value: Tensor, shapes: list[int], *rest: Any) -> tuple[Tensor, Tensor]:
        _, _, logits, *own, return_weights = rest
        weights = logits.new_empty(logits.shape if return_weights else (0,))
        return value.new_empty(out_shape(value, logits, *own)), weights

    def backward(ctx: Any, grad_out: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        value, *sampling = ctx.saved_tensors[:4]
        own = (*ctx.saved_tensors[4:], *ctx.flags)
        needs = [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE]
        if grad_out is None:  # only the weights were used, and they depend on the logits alone
            grad_out = value.new_zeros(out_shape(value, sampling[2], *own))
        grads = getattr(torch.ops.bevkd2, f"{op}_backward")(
            grad_out,
            grad_weights if ctx.return_weights else None,
            value,
            ctx.shapes,
            *sampling,
            *own,
            *needs,
            torch.are_deterministic_algorithms_enabled(),
        )
        value_grad, *others = (grad if need else None for grad, need in zip(grads, needs, strict=True))
        return value_grad, None, *others, None, None, None

    torch.library.register_fake(f"bevkd2::{op}", fake)
    torch.library.register_fake(f"bevkd2::{op}_backward", _fake_backward)
    torch.library.register_autograd(f"bevkd2::{op}", backward, setup_context=_setup_context)
    refuse_double_backward(f"{op}_backward")


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    value, ctx.shapes, references, offsets, logits, *own, ctx.return_weights = inputs
    rows = [argument for argument in own if isinstance(argument, Tensor)]
    ctx.flags = own[len(rows) :]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(value, references, offsets, logits, *rows)


def _fake_backward(
    grad_out: Tensor,
    grad_weights: Tensor | None,
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, need_value, need_references, need_offsets, need_logits, _ = rest
    return (
        gradient_like(value, need_value),
        gradient_like(references, need_references),
        gradient_like(offsets, need_offsets),
        gradient_like(logits, need_logits),
    )
