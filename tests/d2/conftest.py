"""Fixtures for the behaviour tests, which run on whichever provider is active."""

import logging
from collections.abc import Iterator

import pytest
import torch

from bevkd2.d2 import PROVIDER, SimpleTrainer


class Lines(logging.Handler):
    """A handler that keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def engine_log() -> Iterator[list[str]]:
    """Messages of the engine's loggers; not caplog, which set-up loggers do not propagate to."""
    logger, handler = logging.getLogger("detectron2"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def embedded_only() -> None:
    if PROVIDER != "embedded":
        pytest.skip(f"pins what the embedded engine mends; the active provider is {PROVIDER}")


class Toy(torch.nn.Module):
    """Two losses of one weight, whose gradient is 2 * weight + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fail_at: int | None = None
        self.steps = 0

    def forward(self, data: float) -> dict[str, torch.Tensor]:
        if self.steps == self.fail_at:
            raise RuntimeError("made to fail")
        self.steps += 1
        weight = self.weight.sum() * data
        return {"loss_square": weight**2, "loss_plain": weight}


@pytest.fixture
def toy_trainer() -> SimpleTrainer:
    model = Toy()
    return SimpleTrainer(model, [1.0] * 100, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.fixture
def fake_cuda_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA memory statistics of 1 to 4 MB, with or without a GPU."""
    numbers = {
        "memory_allocated": 1,
        "max_memory_allocated": 2,
        "memory_reserved": 3,
        "max_memory_reserved": 4,
    }
    for name, megabytes in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda size=megabytes * 2**20: size)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda: "summary")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
