"""The optimizer and the learning-rate schedule that a config asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import Tensor, nn

from bevkd2.d2 import WarmupParamScheduler

_OPTIMIZERS = {"ADAMW": torch.optim.AdamW, "ADAM": torch.optim.Adam, "SGD": torch.optim.SGD}
_WARMUP_METHODS = ("linear", "constant")
_SHOWN = 5  # names that an error lists


@runtime_checkable
class HasBackbone(Protocol):
    """A model that names the parameters of its backbone, as every ``bevkd2.modeling.Detector`` does."""

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters whose learning rate SOLVER.BACKBONE_MULTIPLIER multiplies."""
        ...


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters, with a separate learning rate for the backbone.

    The backbone is what the detector, or a Distiller's student, returns as ``backbone_parameters()``. Biases
    are those of convolutions and linear layers; a normalisation's is not one of them.

    Args:
        cfg: the config; reads SOLVER.
        model: the model, not in DistributedDataParallel.

    Raises:
        ValueError: an optimizer of another name, or nothing to train.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER: {solver.OPTIMIZER!r} is unknown; expected one of {', '.join(_OPTIMIZERS)}"
        )
    groups = _parameter_groups(solver, model)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; is everything frozen?")
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM)
    optimizer: torch.optim.Optimizer = _OPTIMIZERS[solver.OPTIMIZER](groups, lr=solver.BASE_LR)
    return optimizer


def _parameter_groups(solver: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """One group for each (backbone or not, bias or not) that has parameters."""
    bias_decay = solver.WEIGHT_DECAY if solver.WEIGHT_DECAY_BIAS < 0 else solver.WEIGHT_DECAY_BIAS
    plain_biases = solver.BIAS_LR_FACTOR == 1.0 and bias_decay == solver.WEIGHT_DECAY
    biases = set() if plain_biases else _biases(model)
    detectors = [module for module in model.modules() if isinstance(module, HasBackbone)]
    backbones = {id(parameter) for detector in detectors for parameter in detector.backbone_parameters()}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        backbone, bias = id(parameter) in backbones, name in biases
        rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if backbone else 1.0)
        group = {
            "params": [],
            "lr": rate * (solver.BIAS_LR_FACTOR if bias else 1.0),
            "weight_decay": bias_decay if bias else solver.WEIGHT_DECAY,
        }
        groups.setdefault((backbone, bias), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _biases(model: nn.Module) -> set[str]:
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    return {
        f"{name}.bias"
        for name, module in model.named_modules()
        if isinstance(module, layers) and module.bias is not None
    }


def fit_optimizer_state(
    saved: Mapping[str, Any],
    saved_names: Sequence[str] | None,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
) -> dict[str, Any]:
    """Returns a saved optimizer's state for an optimizer whose settings may have changed.

    Each parameter keeps its own state, such as its moments; learning rates, weight decay and all other
    settings are those of ``optimizer``, also where they make other groups of parameters.

    Args:
        saved: state dict of the saved optimizer.
        saved_names: its parameters, in the order of their groups; None where the checkpoint is of a version
            that did not store them, and the groups must then be the same.
        optimizer: as :func:`build_optimizer` returns it.
        names: the names of its parameters, in the same order.

    Returns:
        A state dict of ``optimizer``.

    Raises:
        ValueError: the saved optimizer is of another kind, or had other parameters.
    """
    own = optimizer.state_dict()
    kinds = [_kind_of(state["param_groups"][0]) for state in (saved, own)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {kinds[1]}, but the checkpoint's optimizer is {kinds[0]}, whose state the "
            f"other cannot use; resume with the optimizer of the first run, or start a new run from its "
            "weights: set MODEL.WEIGHTS and another OUTPUT_DIR, and leave out --resume"
        )
    if saved_names is None:
        sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
        if sizes[0] != sizes[1]:
            raise _other_parameters(f"its groups have {sizes[0]} parameters, expected {sizes[1]}")
        saved_names = names
    if set(saved_names) != set(names):
        new, gone = sorted(set(names) - set(saved_names)), sorted(set(saved_names) - set(names))
        parts = ((new, "trained now, and not in it"), (gone, "in it, and not trained now"))
        raise _other_parameters("; ".join(f"{_listing(group)} {what}" for group, what in parts if group))
    places = [place for group in saved["param_groups"] for place in group["params"]]
    place_of = dict(zip(saved_names, places, strict=True))
    state = {
        i: saved["state"][place_of[name]] for i, name in enumerate(names) if place_of[name] in saved["state"]
    }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        for key, value in state.get(i, {}).items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            if not isinstance(value, (Tensor, int, float, type(None))) or shape not in ((), parameter.shape):
                raise ValueError(
                    f"the checkpoint's optimizer has {shape or repr(value)} as {key} of {names[i]}, expected "
                    f"a tensor of {tuple(parameter.shape)}; it is damaged"
                )
    # The schedule of a resumed training multiplies initial_lr.
    groups = [{**group, "initial_lr": group.get("initial_lr", group["lr"])} for group in own["param_groups"]]
    return {"state": state, "param_groups": groups}


def _kind_of(group: Mapping[str, Any]) -> str:
    if "betas" in group:
        return "ADAMW or ADAM"
    return "SGD" if "momentum" in group else "another"


def _other_parameters(what: str) -> ValueError:
    return ValueError(
        f"the checkpoint's optimizer does not fit this model's trainable parameters: {what}; resume with the "
        "config of the first run (FREEZE_AT, DISTILL.METHODS and DISTILL.INHERIT.MODE decide what is "
        "trained), or start a new run with MODEL.WEIGHTS"
    )


def _listing(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{rest} {'is' if len(names) == 1 else 'are'}"


def build_lr_schedule(cfg: CfgNode) -> ParamScheduler:
    """Builds the factor of the learning rate over the training, warm-up included.

    Args:
        cfg: the config; reads SOLVER.

    Returns:
        A function of the progress iteration / MAX_ITER.

    Raises:
        ValueError: an unknown schedule or warm-up, or steps that are not increasing iterations of this
            training.
    """
    solver = cfg.SOLVER
    if solver.WARMUP_METHOD not in _WARMUP_METHODS:
        raise ValueError(
            f"SOLVER.WARMUP_METHOD: {solver.WARMUP_METHOD!r} is unknown; expected one of "
            f"{', '.join(_WARMUP_METHODS)}"
        )
    schedule = HeldParamScheduler(_decay(solver), solver.MAX_ITER, solver.LR_HOLD_ITERS)
    return WarmupParamScheduler(
        schedule,
        warmup_factor=solver.WARMUP_FACTOR if solver.WARMUP_ITERS else 1.0,
        warmup_length=min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        warmup_method=solver.WARMUP_METHOD,
    )


def _decay(solver: CfgNode) -> ParamScheduler:
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        return CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME: {solver.LR_SCHEDULER_NAME!r} is unknown; "
            f"expected 'WarmupCosineLR' or 'WarmupMultiStepLR'"
        )
    steps = list(solver.STEPS)
    if steps != sorted(set(steps)) or any(not 0 < step < solver.MAX_ITER for step in steps):
        raise ValueError(
            f"SOLVER.STEPS: {steps} must be increasing iterations between 0 and SOLVER.MAX_ITER "
            f"({solver.MAX_ITER}); set both where one changes"
        )
    values = [solver.GAMMA**power for power in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)


class HeldParamScheduler(ParamScheduler):
    """A schedule that moves only every so many iterations, as one that is stepped once an epoch does."""

    def __init__(self, schedule: ParamScheduler, max_iter: int, hold_iters: int) -> None:
        """Wraps a schedule.

        Args:
            schedule: a function of the progress in [0, 1].
            max_iter: iterations of the whole training.
            hold_iters: iterations between two moves; the published models': one epoch.

        Raises:
            ValueError: ``hold_iters`` is not positive.
        """
        if hold_iters < 1:
            raise ValueError(
                f"SOLVER.LR_HOLD_ITERS: {hold_iters} must be at least 1 (1: the schedule always moves)"
            )
        self._schedule = schedule
        self._max_iter = max_iter
        self._hold_iters = hold_iters

    def __call__(self, where: float) -> float:
        """Returns the schedule's value at the beginning of the hold that ``where`` falls into."""
        iteration = where * self._max_iter
        # where came from a division, so an iteration may arrive a rounding error below itself
        held = math.floor((iteration + self.WHERE_EPSILON) / self._hold_iters) * self._hold_iters
        factor: float = self._schedule(held / self._max_iter)
        return factor
