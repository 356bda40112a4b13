"""When a fused loss makes its gradients, and how the upstream gradient reaches them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_in_forward(students: Sequence[Tensor]) -> bool:
    """Whether a loss should write its gradients in the forward pass: they will be asked for, and they fit.

    In float16 the gradient of a mean underflows before a loss scaler multiplies it: 0.02 / 10^7 is below
    float16's 6e-8. There the backward pass makes it, with the upstream gradient folded in.
    """
    wanted = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return wanted and students[0].dtype != torch.float16


def scaled_by_upstream(saved: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The saved gradients times the upstream gradient.

    In new tensors, as a graph that is kept may be walked again. On the CPU an upstream of exactly 1 in a
    graph that is not kept gives the saved tensors away; on a device that question would cost a
    synchronisation.

    Args:
        saved: L gradients.
        upstream: (L,), or a scalar for all of them.

    Returns:
        L tensors in the saved ones' dtypes.
    """
    if _may_be_given_away(upstream):
        return list(saved)
    factors = upstream.expand(len(saved)).unbind(0)
    return [gradient * factor for gradient, factor in zip(saved, factors, strict=True)]


def _may_be_given_away(upstream: Tensor) -> bool:
    # Only a plain tensor has a value here: torch.compile traces the backward pass with fake ones.
    if upstream.device.type != "cpu" or type(upstream) is not Tensor:
        return False
    # Whoever receives a gradient may write into it: AccumulateGrad adds the next one to it in place.
    kept = torch._C._autograd._get_current_graph_task_keep_graph()
    return not kept and bool((upstream == 1).all())


def refuse_second_derivative(op: str) -> None:
    """Raise where a backward pass is itself differentiated: saved gradients are constants to autograd."""
    if torch.is_grad_enabled():  # in a backward pass, by create_graph=True alone
        raise RuntimeError(f"bevkd2::{op} has no second derivative; do not use create_graph=True through it")
