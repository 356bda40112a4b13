import logging

import pytest
import torch

from bevkd2.d2 import HookBase, SimpleTrainer, TrainerBase, has_event_storage


class Recorder(HookBase):
    """A hook that records its calls and their iterations."""

    def __init__(self):
        self.calls = []

    def before_train(self):
        self.calls.append(("before_train", self.trainer.iter))

    def after_train(self):
        self.calls.append(("after_train", self.trainer.iter))

    def before_step(self):
        assert self.trainer.storage.iter == self.trainer.iter
        self.calls.append(("before_step", self.trainer.iter))

    def after_backward(self):
        self.calls.append(("after_backward", self.trainer.model.weight.grad.item()))

    def after_step(self):
        self.calls.append(("after_step", self.trainer.model.weight.item()))


class Stateful(HookBase):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


class Named(Stateful):
    pass


def test_order_of_the_hooks(toy_trainer):
    recorder = Recorder()
    toy_trainer.register_hooks([None, recorder])
    toy_trainer.train(4, 6)
    assert [name for name, _ in recorder.calls] == [
        "before_train",
        *["before_step", "after_backward", "after_step"] * 2,
        "after_train",
    ]
    values = [value for _, value in recorder.calls]
    # gradient 2 w + 1, learning rate 0.1
    assert values == pytest.approx([4, 4, 3.0, 0.7, 5, 2.4, 0.46, 6])
    assert (toy_trainer.iter, toy_trainer.start_iter, toy_trainer.max_iter) == (6, 4, 6)


def test_losses_reach_the_storage(toy_trainer):
    toy_trainer.train(0, 2)
    latest = toy_trainer.storage.latest()
    assert {"data_time", "rank_data_time"} <= set(latest)
    assert latest["loss_square"] == (pytest.approx(0.49), 1)
    assert latest["loss_plain"] == (pytest.approx(0.7), 1)
    assert latest["total_loss"] == (pytest.approx(1.19), 1)


def test_a_bare_loss_is_the_total(toy_trainer):
    model = torch.nn.Linear(1, 1)
    model.forward = lambda data: model.weight.sum() * 0 + data
    trainer = SimpleTrainer(model, [3.0], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (3.0, 0)


def test_gather_period_and_prefix(toy_trainer):
    toy_trainer.gather_metric_period = 2
    toy_trainer.train(0, 3)
    assert [iteration for _, iteration in toy_trainer.storage.history("total_loss").values()] == [1]
    with toy_trainer.storage:
        SimpleTrainer.write_metrics({"a": torch.ones(())}, 0.5, 9, prefix="val_")
    assert toy_trainer.storage.latest()["val_total_loss"] == (1.0, 9)


@pytest.mark.parametrize("zero_first", [False, True])
def test_gradients_are_reset_between_steps(toy_trainer, zero_first):
    toy_trainer.zero_grad_before_forward = zero_first
    toy_trainer.train(0, 3)
    weight = 1.0
    for _ in range(3):
        weight -= 0.1 * (2 * weight + 1)
    assert toy_trainer.model.weight.item() == pytest.approx(weight)


def test_metrics_written_in_a_thread_are_the_same(toy_trainer):
    model, opt = toy_trainer.model, toy_trainer.optimizer
    trainer = SimpleTrainer(model, toy_trainer.data_loader, opt, async_write_metrics=True)
    trainer.train(0, 3)
    values = trainer.storage.history("loss_plain").values()
    assert [iteration for _, iteration in values] == [0, 1, 2]
    assert [value for value, _ in values] == pytest.approx([1.0, 0.7, 0.46])


def test_loss_that_is_not_finite_stops_before_the_step(toy_trainer):
    toy_trainer.data_loader = [1.0, float("nan")]
    with pytest.raises(FloatingPointError, match="iteration=1"):
        toy_trainer.train(0, 2)
    assert toy_trainer.model.weight.item() == pytest.approx(0.7)


def test_failure_is_logged_and_hooks_end(toy_trainer, engine_log):
    recorder = Recorder()
    toy_trainer.register_hooks([recorder])
    toy_trainer.model.fail_at = 2
    with pytest.raises(RuntimeError, match="made to fail"):
        toy_trainer.train(0, 5)
    assert recorder.calls[-1] == ("after_train", 2)
    assert engine_log == ["Starting training from iteration 0", "Exception during training:"]
    assert not has_event_storage()


def test_trainer_state_round_trip(toy_trainer):
    toy_trainer.register_hooks([Stateful(3), Named(4), Recorder()])
    toy_trainer.optimizer.param_groups[0]["lr"] = 0.5
    toy_trainer.train(0, 2)
    state = toy_trainer.state_dict()
    assert state["iteration"] == 2
    assert state["hooks"] == {"Stateful": {"value": 3}, "Named": {"value": 4}}
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.5

    toy_trainer.optimizer.param_groups[0]["lr"] = 0.1
    other = SimpleTrainer(toy_trainer.model, [], toy_trainer.optimizer)
    hooks = [Named(0), Stateful(0)]
    other.register_hooks(hooks)
    other.load_state_dict(state)
    assert (hooks[0].value, hooks[1].value, other.iter) == (4, 3, 2)
    assert other.optimizer.param_groups[0]["lr"] == 0.5


def test_state_of_an_absent_hook_is_skipped(toy_trainer, engine_log):
    toy_trainer.load_state_dict(
        {"iteration": 1, "hooks": {"Gone": {}}, "optimizer": toy_trainer.optimizer.state_dict()}
    )
    assert engine_log == ["Cannot find the hook 'Gone', its state_dict is ignored."]


def test_no_hook_state_no_key(toy_trainer):
    assert set(toy_trainer.state_dict()) == {"iteration", "optimizer"}


def test_only_hooks_are_registered(toy_trainer):
    with pytest.raises(AssertionError):
        toy_trainer.register_hooks([logging.Handler()])


def test_trainer_is_freed_without_garbage_collection(toy_trainer):
    hook = Recorder()
    trainer = SimpleTrainer(toy_trainer.model, [], toy_trainer.optimizer)
    trainer.register_hooks([hook])
    del trainer
    with pytest.raises(ReferenceError):
        _ = hook.trainer.iter


def test_loader_can_be_replaced(toy_trainer):
    toy_trainer.data_loader = [1.0]
    toy_trainer.train(0, 1)
    toy_trainer.reset_data_loader(lambda: [0.0])
    toy_trainer.concurrent_executor = None  # after_train has ended it
    toy_trainer.before_step()
    with toy_trainer.storage:
        toy_trainer.run_step()
    assert toy_trainer.storage.latest()["total_loss"][0] == 0.0


def test_base_has_no_step():
    with pytest.raises(NotImplementedError):
        TrainerBase().run_step()
