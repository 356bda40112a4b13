"""SOLVER.COMPILE, CHANNELS_LAST, SYNC_BN and the checkpointed encoder: the same losses by other means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd2.checkpoint import load_file
from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import EventStorage, build_model, comm
from bevkd2.distill import Distiller
from bevkd2.engine import build_trainer, train
from bevkd2.engine.acceleration import prepare_model
from bevkd2.modeling.backbones.layers import FrozenStatsBatchNorm2d
from bevkd2.modeling.bev.encoder import EncoderLayer
from tests.distill.methods.harness import DETECTORS, build_pair, make_batch
from tests.engine.toys import ToyDetector, build_toy_loader, flat, toy_cfg
from tests.tolerance import as_float64, float64_twin

RELATIVE = 1e-9  # far above the rounding of float64


def losses_and_gradient(model: Distiller, detector: str) -> tuple[dict[str, float], Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(make_batch(detector, 1, 2))
    sum(losses.values()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: value.item() for name, value in losses.items()}, torch.cat(gradients)


def solver(*options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(list(options))
    return cfg


def run_toy(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    train(cfg, model, build_loader=build_toy_loader, evaluate=lambda *_: {})
    return model


def test_a_compiled_training_is_the_eager_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    eager = run_toy(toy_cfg(tmp_path / "eager"))
    torch._dynamo.reset()
    options = ("SOLVER.COMPILE.MODEL", True, "SOLVER.COMPILE.BACKEND", "eager")
    with caplog.at_level("INFO"):
        compiled = run_toy(toy_cfg(tmp_path / "compiled", *options))
    assert compiled.head._compiled_call_impl is not None
    assert torch.equal(flat(compiled), flat(eager))  # the backend "eager" runs the same kernels
    saved = load_file(tmp_path / "compiled" / "model_final.pth")["model"]
    assert list(saved) == list(eager.state_dict())
    counted = re.search(r"torch\.compile after iteration 0: (\d+) graphs, (\d+) graph breaks", caplog.text)
    assert counted and int(counted[1]) > 0
    assert "torch.compile after iteration 5" in caplog.text


def test_student_and_teacher_are_compiled_by_key() -> None:
    for student, teacher in ((True, False), (False, True)):
        model = build_pair("PGD", "PKD")
        keys = list(model.state_dict())
        options = ("SOLVER.COMPILE.MODEL", student, "SOLVER.COMPILE.TEACHER", teacher)
        prepare_model(solver(*options, "SOLVER.COMPILE.BACKEND", "eager"), model)
        compiled = [
            one.image_backbone._compiled_call_impl is not None for one in (model.student, model.teacher)
        ]
        assert compiled == [student, teacher] and list(model.state_dict()) == keys


METHODS = {"BEVFormer": "SpatialAttention", "PGD": "DepthGuidedPrediction", "SMOKE": "DepthGuidedPrediction"}


@pytest.mark.parametrize("detector", DETECTORS)
def test_compiled_detectors_have_the_same_losses_and_no_graph_break(detector: str) -> None:
    both = ("SOLVER.COMPILE.MODEL", True, "SOLVER.COMPILE.TEACHER", True)
    found = []
    for cfg in (solver(), solver(*both, "SOLVER.COMPILE.BACKEND", "eager")):
        model = build_pair(detector, METHODS[detector], student_width=16)
        prepare_model(cfg, model)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        found.append(losses_and_gradient(model, detector))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 4  # backbone and neck, of student and teacher
    assert not counters["graph_break"]
    (losses, gradient), (same_losses, same_gradient) = found
    assert same_losses == losses and "loss_distill" in "".join(losses)
    assert torch.equal(same_gradient, gradient)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"COMPILE\.BACKEND: 'inducter' is unknown; expected .*inductor"):
        prepare_model(
            solver("SOLVER.COMPILE.MODEL", True, "SOLVER.COMPILE.BACKEND", "inducter"), ToyDetector(get_cfg())
        )


@pytest.mark.filterwarnings("ignore:CPU Autocast", "ignore:In CPU autocast")
@pytest.mark.parametrize(
    ("detector", "method"), [("BEVFormer", "BEVResponse"), ("PGD", "DepthGuidedPrediction")]
)
def test_channels_last_changes_no_loss(detector: str, method: str) -> None:
    found = []
    for options in ((), ("SOLVER.CHANNELS_LAST", True)):
        model = build_pair(detector, method)
        prepare_model(solver(*options), model)
        for one in (model, *model.teachers):
            one.double()
        found.append((model, *twin_losses(model, detector)))
    (_, plain, gradient), (model, changed, changed_gradient) = found
    for one in (model.student, model.teacher):
        weight = next(p for p in one.image_backbone.parameters() if p.dim() == 4 and p.shape[-1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert changed == pytest.approx(plain, rel=RELATIVE)
    assert (changed_gradient - gradient).norm() <= RELATIVE * gradient.norm() > 0


def twin_losses(model: Distiller, detector: str) -> tuple[dict[str, float], Tensor]:
    batch = as_float64(make_batch(detector, 1))
    with float64_twin(), EventStorage():
        losses = model.train()(batch)
        sum(losses.values()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: value.item() for name, value in losses.items()}, torch.cat(gradients)


def test_a_checkpointed_encoder_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    forward = EncoderLayer.forward

    def counted(self: EncoderLayer, *args: Any) -> Any:
        calls.append(self.training)
        return forward(self, *args)

    monkeypatch.setattr(EncoderLayer, "forward", counted)
    found = []
    for checkpointing in (False, True):
        options = ("MODEL.BEVFORMER.DROPOUT", 0.3, "MODEL.BEVFORMER.ENCODER_CHECKPOINTING", checkpointing)
        model = build_pair("BEVFormer", "SpatialAttention", student_width=16, options=options)
        calls.clear()
        found.append((*losses_and_gradient(model, "BEVFormer"), sum(calls)))
    (plain, gradient, once), (recomputed, same, twice) = found
    assert recomputed == plain and torch.equal(same, gradient)
    assert twice == 2 * once


class WithNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.free = FrozenStatsBatchNorm2d(4).train(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.free(self.frozen(x))


def test_only_norms_with_statistics_of_a_batch_are_synchronised() -> None:
    plain, model = WithNorms(), WithNorms()
    prepare_model(solver("SOLVER.SYNC_BN", True), model)
    assert type(model.frozen) is FrozenStatsBatchNorm2d and type(model.free) is nn.SyncBatchNorm
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(model(x), plain(x))  # one process
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_norms_that_cannot_be_synchronised_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.SYNC_BN is True, but no layer .*BACKBONE\.NORM to BN"):
        cfg = toy_cfg(tmp_path, "SOLVER.SYNC_BN", True)
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=lambda *_: {})
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"on GPUs only, and MODEL\.DEVICE is cpu"):
        prepare_model(solver("SOLVER.SYNC_BN", True), WithNorms())
