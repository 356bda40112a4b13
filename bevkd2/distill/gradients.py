"""How strongly each loss pulls at each part of the student."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

OTHER = "queries"
"""The part that holds parameters of the student itself, not of one of its modules."""


def trained_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns the trained parameters of a model by part: its modules in order, then :data:`OTHER`."""
    parts: dict[str, list[nn.Parameter]] = {name: [] for name, _ in model.named_children()}
    parts[OTHER] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            parts[part if "." in name else OTHER].append(parameter)
    return {name: parameters for name, parameters in parts.items() if parameters}


def gradient_norms(loss: Tensor, parts: Mapping[str, Iterable[nn.Parameter]]) -> dict[str, float]:
    """Computes the L2 norm of the gradient of one loss on every part; the graph is kept.

    Args:
        loss: scalar.
        parts: parameters by part, as :func:`trained_parts` returns them.

    Returns:
        The norm by part; 0 where the loss does not depend on a part.
    """
    flat = [(name, parameter) for name, parameters in parts.items() for parameter in parameters]
    squares: dict[str, float] = dict.fromkeys(parts, 0.0)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, [p for _, p in flat], retain_graph=True, allow_unused=True)
        sums: defaultdict[str, list[Tensor]] = defaultdict(list)
        for (name, _), gradient in zip(flat, gradients, strict=True):
            if gradient is not None:
                sums[name].append(gradient.double().square().sum())
        squares |= {name: torch.stack(terms).sum().item() for name, terms in sums.items()}
    return {name: square**0.5 for name, square in squares.items()}


def reaches(loss: Tensor, parameters: Iterable[nn.Parameter]) -> bool:
    """Returns whether the gradient of a loss is other than zero on any of the parameters; keeps the graph.

    The loss is enlarged, so that a small gradient does not vanish in 16-bit layers.

    Args:
        loss: (), a scalar; one without a graph reaches nothing.
        parameters: those that are not trained are left out.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not (loss.requires_grad and trained):
        return False
    gradients = torch.autograd.grad(loss * 2.0**16, trained, retain_graph=True, allow_unused=True)
    return any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)
