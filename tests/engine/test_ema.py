"""SOLVER.EMA: the average of the weights is what is evaluated, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bevkd2.checkpoint import CheckpointFileError, load_file
from bevkd2.d2 import HookBase, build_model
from bevkd2.engine import build_trainer, train
from bevkd2.engine.hooks import AverageWeights
from tests.engine.test_build import DISTILL, Interrupt
from tests.engine.toys import build_toy_loader, flat, toy_cfg

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)


class Snapshots(HookBase):
    """Copies the weights of the trained module after every step."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.taken = module, [clone(module)]

    def after_step(self) -> None:
        self.taken.append(clone(self.module))


def clone(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def run(cfg: Any, scored: list[nn.Module], **kwargs: Any) -> tuple[nn.Module, Snapshots]:
    torch.manual_seed(0)
    model = build_model(cfg)
    snapshots = Snapshots(model.student if hasattr(model, "student") else model)

    def score(cfg: Any, scored_model: nn.Module) -> Any:
        scored.append(clone(scored_model))
        return {"toy": {"score": 1.0}}

    kwargs = {"build_loader": build_toy_loader, **kwargs}
    train(cfg, model, evaluate=score, extra_hooks=[snapshots], **kwargs)
    return model, snapshots


@pytest.mark.parametrize("options", [(), DISTILL])
def test_the_average_is_evaluated_and_saved_as_the_model(tmp_path: Path, options: tuple[Any, ...]) -> None:
    scored: list[Any] = []
    _, snapshots = run(toy_cfg(tmp_path, *options, *EMA), scored)
    expected = dict(snapshots.taken[0])
    for step, weights in enumerate(snapshots.taken[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
    for name in ("model_final", "model_0000005", "model_best"):
        content = load_file(tmp_path / f"{name}.pth")
        assert content["model"].keys() == snapshots.taken[-1].keys()
        for key, value in expected.items():
            torch.testing.assert_close(content["model"][key], value, rtol=0, atol=1e-6)
            assert torch.equal(content["trained"][key], snapshots.taken[-1][key])
            assert torch.equal(content["model"][key], scored[-1][key])
        assert torch.equal(content["model"]["image_backbone.bias"], snapshots.taken[0]["image_backbone.bias"])
    assert not torch.equal(content["model"]["head.weight"], content["trained"]["head.weight"])


def test_a_training_is_the_same_with_an_average_and_without(tmp_path: Path) -> None:
    with_average, _ = run(toy_cfg(tmp_path / "with", *EMA), [])
    without, _ = run(toy_cfg(tmp_path / "without"), [])
    assert torch.equal(flat(with_average), flat(without))
    assert "trained" not in load_file(tmp_path / "without" / "model_final.pth")


def test_a_resumed_average_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path / "straight", *DISTILL, *EMA), [])
    cfg = toy_cfg(tmp_path / "stopped", *DISTILL, *EMA)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, [], build_loader=Interrupt)
    run(cfg, [], resume=True)
    a, b = (load_file(tmp_path / folder / "model_final.pth") for folder in ("straight", "stopped"))
    for part in ("model", "trained"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())


@pytest.mark.parametrize("before", [(), EMA])
def test_switching_it_over_a_resume_is_a_named_error(tmp_path: Path, before: tuple[Any, ...]) -> None:
    run(toy_cfg(tmp_path, *before), [])
    cfg = toy_cfg(tmp_path, *(() if before else EMA), "SOLVER.MAX_ITER", 8)
    with pytest.raises(CheckpointFileError, match=r"SOLVER\.EMA\.ENABLED.* MODEL\.WEIGHTS"):
        run(cfg, [], resume=True)


def test_the_weights_of_a_new_run_are_the_average(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path / "first", *EMA), [])
    path = tmp_path / "first" / "model_final.pth"
    cfg = toy_cfg(tmp_path / "second", *EMA, "MODEL.WEIGHTS", str(path))
    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=lambda *_: {})
    average = next(hook for hook in trainer._hooks if isinstance(hook, AverageWeights))
    saved = load_file(path)["model"]
    for module in (trainer.model, average.model):
        assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


def test_running_statistics_are_the_models(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    average = AverageWeights(model, 0.5)
    model(torch.randn(8, 3) + 2)
    average.trainer = type("Trainer", (), {"iter": 0})()
    average.after_step()
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_cannot_be_is_named(tmp_path: Path, decay: float) -> None:
    cfg = toy_cfg(tmp_path, "SOLVER.EMA.DECAY", decay)
    with pytest.raises(ValueError, match=r"SOLVER\.EMA\.DECAY"):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=lambda *_: {})
