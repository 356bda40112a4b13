"""The hook that warns of distillation losses without a gradient on the backbone."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from bevkd2.engine.hooks import WarnOfUnreached


class Model:
    """Finds one loss when it is asked to look."""

    def __init__(self) -> None:
        self.look_for_unreached = False
        self.looked_at: list[int] = []

    def step(self, iteration: int) -> None:
        if self.look_for_unreached:
            self.looked_at.append(iteration)
            self.look_for_unreached = False

    def pop_unreached(self) -> list[str]:
        return ["Method (loss)"] if self.looked_at and self.looked_at[-1] == self.last else []

    last = -1


def run(start: int, end: int) -> Model:
    model = Model()
    hook = WarnOfUnreached(model)
    hook.trainer = SimpleNamespace(start_iter=start, max_iter=end, iter=start)
    hook.before_train()
    for iteration in range(start, end):
        hook.trainer.iter = model.last = iteration
        hook.before_step()
        model.step(iteration)
        hook.after_step()
    return model


@pytest.mark.parametrize(("start", "end", "at"), [(0, 100, 50), (0, 3, 2), (30, 200, 80), (99, 100, 99)])
def test_it_looks_once_a_while_after_the_start(start: int, end: int, at: int, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="bevkd2.engine.hooks"):
        model = run(start, end)
    assert model.looked_at == [at]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "Method (loss) does not reach the student's image backbone" in messages[0]
