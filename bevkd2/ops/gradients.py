"""What the autograd formulas of the ops share."""

from collections.abc import Sequence

import torch
from torch import Tensor

# torch has no public function for this. If the private one disappears, every graph counts as retained, which
# costs one more tensor per loss.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def gradient_like(tensor: Tensor, needed: bool) -> Tensor:
    """Returns, in a fake kernel, an uninitialised gradient of the tensor, empty (0,) if it is not needed."""
    return tensor.new_empty(tensor.shape if needed else (0,))


def gradients_in_forward(students: Sequence[Tensor]) -> bool:
    """Returns whether a loss should compute its gradients in the forward pass.

    It should if they will be asked for and the student's dtype can hold them. In float16 the gradient of a
    mean underflows before a loss scaler multiplies it: 0.02 / 10^7 is below float16's smallest number, 6e-8.
    The backward pass computes such a gradient, with the upstream gradient folded in.

    Args:
        students: the student's features or logits, all of one dtype.
    """
    wanted = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return wanted and students[0].dtype != torch.float16


def scaled_by_upstream(saved: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Returns the saved gradients multiplied by the upstream gradient.

    If the graph is not retained, nobody reads the saved tensors again: they are scaled in place, and an
    upstream gradient of exactly 1 costs nothing (on CUDA the kernel itself looks at it, so that nothing
    waits for the device). A retained graph can run backward again, so it gets new tensors.

    Args:
        saved: L gradients.
        upstream: (L,), or a scalar for all of them.

    Returns:
        L tensors in the dtypes of ``saved``.
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
    """Returns whether the running backward pass has ``retain_graph``; true while torch traces it.

    Args:
        upstream: the gradient that the pass hands to the op, of any shape; only its class is looked
            at.
    """
    # torch.compile and similar tracers use subclasses of Tensor, which have no values.
    return type(upstream) is not Tensor or _keeps_graph()


def refuse_second_derivative(op: str) -> None:
    """Raises if the running backward pass is itself being differentiated.

    The formulas of losses call this first: their saved gradients are constants for autograd, so torch would
    return wrong second derivatives. A backward op of its own is refused by :func:`refuse_double_backward`.

    Args:
        op: name of the op in the namespace ``bevkd2``.

    Raises:
        RuntimeError: the backward pass runs with ``create_graph=True``.
    """
    if torch.is_grad_enabled():  # in a backward pass only create_graph=True enables it
        raise RuntimeError(f"bevkd2::{op} has no second derivative; do not use create_graph=True through it")


def refuse_double_backward(op: str) -> None:
    """Registers a formula that raises for a backward op, where torch would return wrong second derivatives.

    The first derivative with ``create_graph=True`` stays allowed: a gradient penalty elsewhere in the graph
    may need it, and never differentiate this op twice.

    Args:
        op: name of the backward op in the namespace ``bevkd2``.
    """

    def raise_error(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(f"bevkd2::{op} has no second derivative; do not differentiate its gradient again")

    torch.library.register_autograd(f"bevkd2::{op}", raise_error)
