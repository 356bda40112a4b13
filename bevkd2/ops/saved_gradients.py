"""When a fused loss makes its gradients, and how the upstream gradient reaches them."""

from collections.abc import Sequence

import torch
from torch import Tensor

# No public function tells. Should torch drop this one, every graph counts as kept, which costs a tensor more.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def gradients_in_forward(students: Sequence[Tensor]) -> bool:
    """Whether a loss should write its gradients in the forward pass: they will be asked for, and they fit.

    In float16 the gradient of a mean underflows before a loss scaler multiplies it: 0.02 / 10^7 is below
    float16's 6e-8. There the backward pass makes it, with the upstream gradient folded in.
    """
    wanted = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return wanted and students[0].dtype != torch.float16


def scaled_by_upstream(saved: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The saved gradients times the upstream gradient.

    Where the graph is not kept, nobody reads the saved tensors again: they are scaled in place, and an
    upstream of exactly 1 costs nothing (on CUDA the kernel itself looks at it, which needs no
    synchronisation). A graph that is kept may be walked again, and gives new tensors.

    Args:
        saved: L gradients.
        upstream: (L,), or a scalar for all of them.

    Returns:
        L tensors in the saved ones' dtypes.
    """
    factors = upstream.expand(len(saved)).unbind(0)
    if graph_is_kept(upstream):
        return [gradient * factor for gradient, factor in zip(saved, factors, strict=True)]
    if upstream.is_cuda:
        torch.ops.bevkd2.scale_gradients_(list(saved), upstream.expand(len(saved)).double().contiguous())
        return list(saved)
    if bool((upstream == 1).all()):
        return list(saved)
    return [gradient.mul_(factor) for gradient, factor in zip(saved, factors, strict=True)]


def graph_is_kept(upstream: Tensor) -> bool:
    """Whether the backward pass that runs now was called with retain_graph; yes where it is being traced."""
    # torch.compile and its like trace with subclasses, whose tensors have no values.
    return type(upstream) is not Tensor or _keeps_graph()


def refuse_second_derivative(op: str) -> None:
    """Raise where a backward pass is itself differentiated: saved gradients are constants to autograd."""
    if torch.is_grad_enabled():  # in a backward pass, by create_graph=True alone
        raise RuntimeError(f"bevkd2::{op} has no second derivative; do not use create_graph=True through it")
