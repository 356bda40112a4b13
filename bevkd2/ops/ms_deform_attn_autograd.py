"""Fake kernels and autograd formula of the deformable attention ops that have the softmax inside.

Both forms, fused and ragged, have the schema ``op(value, spatial_shapes, reference_points, sampling_offsets,
attention_logits, *form, return_weights) -> (out, weights)``, where ``form`` are two arguments of their own:
numbers in the fused form, tensors without a gradient in the ragged one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gradients import gradient_like, refuse_double_backward


def register_softmax_form(op: str, out_shape: Callable[..., tuple[int, ...]]) -> None:
    """Registers the fake kernels, the autograd formula and the refusal of a second derivative of an op.

    Args:
        op: name of the op in the namespace ``bevkd2``; its backward op is ``<op>_backward``.
        out_shape: called with value, logits and the two arguments ``form``; returns the shape of the output.
    """

    def fake(
        value: Tensor,
        shapes: list[int],
        references: Tensor,
        offsets: Tensor,
        logits: Tensor,
        form_a: Any,
        form_b: Any,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor]:
        out = value.new_empty(out_shape(value, logits, form_a, form_b))
        return out, gradient_like(logits, return_weights)

    def fake_backward(
        grad_out: Tensor,
        grad_weights: Tensor | None,
        value: Tensor,
        shapes: list[int],
        references: Tensor,
        offsets: Tensor,
        logits: Tensor,
        form_a: Any,
        form_b: Any,
        need_value: bool,
        need_references: bool,
        need_offsets: bool,
        need_logits: bool,
        deterministic: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            gradient_like(value, need_value),
            gradient_like(references, need_references),
            gradient_like(offsets, need_offsets),
            gradient_like(logits, need_logits),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        value, ctx.shapes, references, offsets, logits, *form, ctx.return_weights = inputs
        tensors = [argument for argument in form if isinstance(argument, Tensor)]
        ctx.numbers = [argument for argument in form if not isinstance(argument, Tensor)]
        ctx.save_for_backward(value, references, offsets, logits, *tensors)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_out: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        value, references, offsets, logits, *tensors = ctx.saved_tensors
        form = (*tensors, *ctx.numbers)  # one of the two is empty
        need_value, _, *need_others = ctx.needs_input_grad[:5]
        if grad_out is None:  # only the weights were used
            grad_out = value.new_zeros(out_shape(value, logits, *form))
        grads = getattr(torch.ops.bevkd2, f"{op}_backward")(
            grad_out,
            grad_weights if ctx.return_weights else None,
            value,
            ctx.shapes,
            references,
            offsets,
            logits,
            *form,
            need_value,
            *need_others,
            torch.are_deterministic_algorithms_enabled(),
        )
        needed = (need_value, *need_others)
        value_grad, *others = (g if need else None for g, need in zip(grads, needed, strict=True))
        form_and_return_weights = (None, None, None)
        return value_grad, None, *others, *form_and_return_weights

    torch.library.register_fake(f"bevkd2::{op}", fake)
    torch.library.register_fake(f"bevkd2::{op}_backward", fake_backward)
    torch.library.register_autograd(f"bevkd2::{op}", backward, setup_context=setup_context)
    refuse_double_backward(f"{op}_backward")
