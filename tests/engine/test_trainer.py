"""The training step."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bevkd2.d2 import HookBase, LRScheduler
from bevkd2.engine import (
    DistillTrainer,
    NonFiniteGradientError,
    NonFiniteLossError,
    build_lr_schedule,
    build_optimizer,
)
from bevkd2.engine.trainer import seed_step
from tests.engine.toys import ToyDetector, ToyLoader, flat, toy_cfg, toy_sample


def make_trainer(tmp_path: Path, poison: int | None = None, **kwargs: Any) -> DistillTrainer:
    cfg = toy_cfg(tmp_path)
    torch.manual_seed(0)
    model = ToyDetector(cfg)
    optimizer = build_optimizer(cfg, model)
    return DistillTrainer(model, lambda start: ToyLoader(cfg, start, poison), optimizer, seed=3, **kwargs)


class Recorder(HookBase):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.metrics: list[dict[str, float]] = []

    def before_step(self) -> None:
        self.calls.append("before_step")
        self.weights = flat(self.trainer.model)

    def after_backward(self) -> None:
        self.calls.append("after_backward")
        assert torch.equal(self.weights, flat(self.trainer.model))
        self.grad = self.trainer.model.head.weight.grad.clone()

    def after_step(self) -> None:
        self.calls.append("after_step")
        assert not torch.equal(self.weights, flat(self.trainer.model))
        self.metrics.append({name: value for name, (value, _) in self.trainer.storage.latest().items()})


def test_hooks_fire_around_backward_and_step(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path), Recorder()
    trainer.register_hooks([recorder])
    trainer.train(0, 2)
    assert recorder.calls == ["before_step", "after_backward", "after_step"] * 2
    metrics = recorder.metrics[0]
    assert metrics["total_loss"] == pytest.approx(metrics["loss_cls"] + metrics["loss_box"])
    assert {"grad_norm", "data_time"} <= set(metrics)


def test_frozen_parameters_are_unchanged_and_not_in_the_optimizer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train(0, 1)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"image_backbone.weight", "head.weight", "head.bias"}
    optimized = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert not any(p is trainer.model.image_backbone.bias for p in optimized)


def test_nan_loss_stops_before_the_step(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, poison=1), Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(
        NonFiniteLossError, match=r"iteration 1: loss_cls=nan on the samples token4, token5,"
    ) as error:
        trainer.train(0, 3)
    assert "loss_box" not in str(error.value)
    assert recorder.calls[-1] == "after_backward"  # losses and norm are looked at together, after it
    assert torch.equal(recorder.weights, flat(trainer.model))
    assert torch.isfinite(flat(trainer.model)).all()


class Evaluates(HookBase):
    """Leaves the model in eval mode."""

    def after_step(self) -> None:
        self.trainer.model.eval()


def test_a_model_that_was_left_in_eval_mode_is_not_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.register_hooks([Evaluates()])
    with pytest.raises(RuntimeError, match="iteration 1: the model is in eval mode"):
        trainer.train(0, 2)


class Sqrt(nn.Module):
    """A finite loss with an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.other = nn.Parameter(torch.ones(1))

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sqrt().sum() + self.other.sum()}


def test_infinite_gradient_stops_before_the_step() -> None:
    model = Sqrt()
    trainer = DistillTrainer(model, lambda start: [[{}]], torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(NonFiniteGradientError, match=r"those of weight\. The weights were not updated"):
        trainer.train(0, 1)
    assert model.weight.item() == 0 and model.other.item() == 1


def test_gradients_are_clipped_to_one_norm_over_all_parameters(tmp_path: Path) -> None:
    class Norms(HookBase):
        def after_step(self) -> None:
            grads = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
            self.clipped = torch.stack([g.norm() for g in grads]).norm().item()
            self.logged = self.trainer.storage.latest()["grad_norm"][0]

    free, tight = Norms(), Norms()
    for hook, limit in ((free, math.inf), (tight, 0.01)):
        trainer = make_trainer(tmp_path, max_grad_norm=limit)
        trainer.register_hooks([hook])
        trainer.train(0, 1)
    assert free.clipped == pytest.approx(free.logged) and free.logged > 0.1
    assert tight.logged == pytest.approx(free.logged)
    assert tight.clipped == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_float32_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    seen = []
    trainer = make_trainer(tmp_path, amp_dtype=dtype)
    trainer.model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = flat(trainer.model)
    trainer.train(0, 3)
    assert seen == [dtype] * 3
    assert flat(trainer.model).dtype == torch.float32 and not torch.equal(before, flat(trainer.model))
    assert trainer.grad_scaler.is_enabled() == (dtype == torch.float16)


def test_float16_gradients_are_unscaled_before_clipping(tmp_path: Path) -> None:
    norms = {}
    for dtype in (None, torch.float16):
        trainer, recorder = make_trainer(tmp_path, amp_dtype=dtype), Recorder()
        trainer.register_hooks([recorder])
        trainer.train(0, 1)
        norms[dtype] = recorder.metrics[0]["grad_norm"]
    assert norms[torch.float16] == pytest.approx(norms[None], rel=0.02)


def test_float16_overflow_skips_the_step_and_lowers_the_scale(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, amp_dtype=torch.float16)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = flat(trainer.model)
    trainer.train(0, 1)
    assert torch.equal(before, flat(trainer.model))
    assert trainer.grad_scaler.get_scale() == 2.0**39


def test_state_holds_the_scaler(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, amp_dtype=torch.float16)
    first.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    first.train(0, 1)
    second = make_trainer(tmp_path, amp_dtype=torch.float16)
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.get_scale() == 4.0


def test_optimizer_of_other_parameters_is_a_named_error(tmp_path: Path) -> None:
    state = make_trainer(tmp_path).state_dict()
    other = make_trainer(tmp_path)
    other.optimizer = torch.optim.AdamW(other.model.head.parameters())
    with pytest.raises(ValueError, match="resume with the config of the first run"):
        other.load_state_dict(state)


def test_state_of_another_program_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no optimizer, only iteration, _trainer, so another program"):
        make_trainer(tmp_path).load_state_dict({"iteration": 3, "_trainer": {}})


@pytest.mark.parametrize("iteration", [-1, 2.0, "3", None, float("nan")])
def test_an_iteration_that_is_none_is_named(tmp_path: Path, iteration: Any) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"iteration is .*, expected a whole number from 0"):
        trainer.load_state_dict({**trainer.state_dict(), "iteration": iteration})


def test_skipped_steps_are_counted_and_torch_gives_no_advice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    trainer = make_trainer(tmp_path, amp_dtype=torch.float16)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    trainer.register_hooks([LRScheduler(trainer.optimizer, build_lr_schedule(toy_cfg(tmp_path)))])
    with caplog.at_level("INFO"):
        trainer.train(0, 2)
    assert "float16: 2 of 2 steps were skipped" in caplog.text
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


class Noisy(Dataset):
    """Augments with the global generators, as third-party mappers do."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = toy_sample(3, index)
        return {**sample, "x": sample["x"] + torch.rand(1) + random.random() + np.random.rand()}


def build_noisy_loader(start: int) -> DataLoader:
    frames = range(start * 4, 24)
    return DataLoader(Noisy(), batch_size=4, sampler=frames, collate_fn=list)


def test_random_numbers_of_loading_and_training_do_not_depend_on_where_a_run_started(tmp_path: Path) -> None:
    straight, first, second = (make_trainer(tmp_path) for _ in range(3))
    for trainer in (straight, first, second):
        trainer._build_loader = build_noisy_loader
    straight.train(0, 6)
    first.train(0, 3)
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    torch.rand(7), random.random()
    second.train(3, 6)
    assert torch.equal(flat(straight.model), flat(second.model))


def test_step_seed_depends_on_each_of_its_parts() -> None:
    draws = set()
    for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        seed_step(*key)
        draws.add(torch.rand(1).item())
        first = torch.rand(1).item()
        seed_step(*key)
        torch.rand(1)
        assert torch.rand(1).item() == first
    assert len(draws) == 5
