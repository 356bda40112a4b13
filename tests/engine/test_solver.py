"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import LRMultiplier
from bevkd2.engine import build_lr_schedule, build_optimizer
from bevkd2.engine.solver import fit_optimizer_state
from tests.engine.toys import ToyDetector, ToyDistiller, toy_cfg


def rates(cfg: CfgNode, iterations: list[int]) -> list[float]:
    schedule = build_lr_schedule(cfg)
    return [cfg.SOLVER.BASE_LR * schedule(i / cfg.SOLVER.MAX_ITER) for i in iterations]


def solver(**values: Any) -> CfgNode:
    cfg = get_cfg()
    for name, value in values.items():
        cfg.SOLVER[name] = value
    return cfg


@pytest.mark.parametrize("make", [ToyDetector, ToyDistiller])
def test_backbone_has_a_lower_rate_and_frozen_parameters_are_excluded(
    tmp_path: Path, make: type[nn.Module]
) -> None:
    model = make(toy_cfg(tmp_path))
    optimizer = build_optimizer(solver(BASE_LR=0.02, BACKBONE_MULTIPLIER=0.1, WEIGHT_DECAY=0.3), model)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if name.endswith("image_backbone.bias"):
            assert p not in rate
        else:
            assert rate[p] == pytest.approx(0.002 if "image_backbone" in name else 0.02), name
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


class OtherNames(nn.Module):
    """A detector whose backbone has another name, and which has a layer by the customary one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.image_backbone = nn.Linear(2, 2), nn.Linear(2, 2)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())


def test_backbone_parameters_come_from_the_detector() -> None:
    model = nn.ModuleDict({"student": OtherNames()})
    optimizer = build_optimizer(solver(BASE_LR=0.02, BACKBONE_MULTIPLIER=0.1), model)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[model["student"].trunk.weight] == pytest.approx(0.002)
    assert rate[model["student"].image_backbone.weight] == pytest.approx(0.02)


def test_teacher_is_not_optimized(tmp_path: Path) -> None:
    model = ToyDistiller(toy_cfg(tmp_path))
    optimized = {p for group in build_optimizer(get_cfg(), model).param_groups for p in group["params"]}
    assert not optimized & set(model.teacher.parameters())


def test_nothing_to_train_and_unknown_optimizer(tmp_path: Path) -> None:
    model = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        build_optimizer(get_cfg(), model)
    with pytest.raises(
        ValueError, match=r"SOLVER\.OPTIMIZER: 'LARS' is unknown; expected one of ADAMW, ADAM"
    ):
        build_optimizer(solver(OPTIMIZER="LARS"), model)


def test_sgd_with_faster_undecayed_biases() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2), nn.Conv2d(2, 1, 1, bias=False))
    cfg = solver(OPTIMIZER="SGD", MOMENTUM=0.8, BASE_LR=0.1, WEIGHT_DECAY=1e-4)
    cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 0.0
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        bias = name == "0.bias"  # the normalisation's bias is decayed like a weight
        assert (found[p]["lr"], found[p]["weight_decay"]) == ((0.2, 0.0) if bias else (0.1, 1e-4)), name
        assert found[p]["momentum"] == 0.8


def test_published_schedule() -> None:
    # Log of the published run (BEVFormer issues 31 and 66): iteration 50 (the 49th from 0) 7.973e-5, then
    # 2e-4 through the first epoch, 1.991e-4 in the second; 24 epochs of 3517 iterations.
    cfg = solver(LR_HOLD_ITERS=3517, MAX_ITER=84408)
    found = rates(cfg, [0, 49, 500, 3516, 3517, 7033, 84407])
    assert found[:2] == pytest.approx([2e-4 / 3, 7.973e-5], rel=1e-3)
    assert found[2:4] == pytest.approx([2e-4, 2e-4])
    assert found[4:6] == pytest.approx([1.991e-4] * 2, rel=1e-3) and found[4] == found[5]
    assert 2e-7 < found[6] < 2e-6


def test_cosine_without_hold_ends_at_its_last_value() -> None:
    cfg = solver(MAX_ITER=100, WARMUP_ITERS=0, BASE_LR=1.0, BASE_LR_END=0.1)
    found = rates(cfg, list(range(101)))
    assert found[0] == 1.0 and found[50] == pytest.approx(0.55) and found[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(found))


def test_steps_and_constant_warmup() -> None:
    cfg = solver(LR_SCHEDULER_NAME="WarmupMultiStepLR", MAX_ITER=100, STEPS=(60, 80), BASE_LR=1.0)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_METHOD, cfg.SOLVER.WARMUP_FACTOR = 10, "constant", 0.25
    found = rates(cfg, [0, 9, 10, 59, 60, 79, 80, 99])
    assert found == pytest.approx([0.25, 0.25, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_every_iteration_falls_into_its_hold() -> None:
    cfg = solver(LR_HOLD_ITERS=7, MAX_ITER=7 * 30, WARMUP_ITERS=0)
    found = rates(cfg, list(range(7 * 30)))
    assert [len({*found[start : start + 7]}) for start in range(0, 7 * 30, 7)] == [1] * 30
    assert len(set(found)) == 30


def test_groups_keep_their_ratio_over_the_training() -> None:
    parameters = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.AdamW(parameters)
    multiplier = LRMultiplier(optimizer, build_lr_schedule(solver(MAX_ITER=10, WARMUP_ITERS=3)), max_iter=10)
    for _ in range(10):
        fast, slow = (group["lr"] for group in optimizer.param_groups)
        assert slow == pytest.approx(fast / 10)
        optimizer.step()
        multiplier.step()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"LR_SCHEDULER_NAME": "Poly"}, r"LR_SCHEDULER_NAME: 'Poly' is unknown; expected 'WarmupCosineLR'"),
        ({"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (9, 5)}, r"STEPS: \[9, 5\] must be increasing"),
        (
            {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (10**6,)},
            r"STEPS: .*SOLVER.MAX_ITER \(100\)",
        ),
        ({"LR_HOLD_ITERS": 0}, r"LR_HOLD_ITERS: 0 must be at least 1"),
        ({"WARMUP_METHOD": "exp"}, r"WARMUP_METHOD: 'exp' is unknown; expected one of linear, constant"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_lr_schedule(solver(**{"MAX_ITER": 100, **values}))


def trained(tmp_path: Path, *options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after one step."""
    torch.manual_seed(0)
    cfg = toy_cfg(tmp_path, *options)
    model = ToyDetector(cfg)
    optimizer = build_optimizer(cfg, model)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    return model, optimizer


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    "options",
    [
        ("SOLVER.BASE_LR", 0.02, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.5),
        ("SOLVER.BIAS_LR_FACTOR", 2.0),  # other groups, in another order
        ("SOLVER.OPTIMIZER", "ADAM"),
    ],
)
def test_a_saved_optimizer_keeps_its_moments_and_takes_the_configs_settings(
    tmp_path: Path, options: tuple[Any, ...]
) -> None:
    model, saved = trained(tmp_path)
    cfg = toy_cfg(tmp_path, *options)
    other = ToyDetector(cfg)
    resumed = build_optimizer(cfg, other)
    expected = [{k: v for k, v in group.items() if k != "params"} for group in resumed.param_groups]
    state = fit_optimizer_state(saved.state_dict(), names_of(model, saved), resumed, names_of(other, resumed))
    resumed.load_state_dict(state)
    for group, settings in zip(resumed.param_groups, expected, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {**settings, "initial_lr": settings["lr"]}
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    moments = {name: saved.state[p]["exp_avg"] for name, p in ours.items() if p in saved.state}
    assert len(moments) == 3
    for name, moment in moments.items():
        assert torch.equal(resumed.state[theirs[name]]["exp_avg"], moment), name


@pytest.mark.parametrize(("first", "second"), [("ADAMW", "SGD"), ("SGD", "ADAM")])
def test_the_state_of_another_kind_of_optimizer_is_a_named_error(
    tmp_path: Path, first: str, second: str
) -> None:
    model, saved = trained(tmp_path, "SOLVER.OPTIMIZER", first)
    other, resumed = trained(tmp_path, "SOLVER.OPTIMIZER", second)
    with pytest.raises(
        ValueError, match=r"SOLVER\.OPTIMIZER is .*, but the checkpoint's optimizer is .*MODEL\.WEIGHTS"
    ):
        fit_optimizer_state(saved.state_dict(), names_of(model, saved), resumed, names_of(other, resumed))


@pytest.mark.parametrize("moment", [torch.zeros(3), "text"])
def test_a_moment_that_is_not_the_parameters_is_named(tmp_path: Path, moment: Any) -> None:
    model, saved = trained(tmp_path)
    state = saved.state_dict()
    state["state"] = {place: {**entry, "exp_avg": moment} for place, entry in state["state"].items()}
    with pytest.raises(ValueError, match=r"optimizer has .* as exp_avg of \w+\.weight, expected a tensor"):
        fit_optimizer_state(state, names_of(model, saved), saved, names_of(model, saved))


def test_an_optimizer_of_other_parameters_names_them(tmp_path: Path) -> None:
    model, saved = trained(tmp_path)
    names = names_of(model, saved)
    head = torch.optim.AdamW(model.head.parameters())
    message = r"image_backbone\.weight is in it, and not trained now; resume with the config of the first run"
    with pytest.raises(ValueError, match=message):
        fit_optimizer_state(saved.state_dict(), names, head, ["head.weight", "head.bias"])
    with pytest.raises(ValueError, match=r"its groups have \[2, 1\] parameters, expected \[2\]"):  # of 0.1
        fit_optimizer_state(saved.state_dict(), None, head, ["head.weight", "head.bias"])
    again = fit_optimizer_state(saved.state_dict(), None, saved, names)
    assert again["state"].keys() == saved.state_dict()["state"].keys()
