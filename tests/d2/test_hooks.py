import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import LinearParamScheduler

from bevkd2.d2 import (
    BestCheckpointer,
    CallbackHook,
    EvalHook,
    EventWriter,
    HookBase,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
    SimpleTrainer,
    TorchMemoryStats,
    hooks,
)


def train(trainer: SimpleTrainer, *more: HookBase, iterations: int = 6) -> None:
    trainer.register_hooks(list(more))
    trainer.train(0, iterations)


class CountingWriter(EventWriter):
    def __init__(self):
        self.iterations, self.closed = [], False

    def write(self):
        self.iterations.append(self.trainer.iter)

    def close(self):
        self.closed = True


class Saved:
    """A checkpointer that only remembers the names."""

    path_manager = None

    def __init__(self):
        self.names = []

    def save(self, name, **state):
        self.names.append((name, state["iteration"]))


def test_names_are_those_of_the_module():
    assert hooks.EvalHook is EvalHook
    assert hooks.LRScheduler is LRScheduler


def test_callbacks(toy_trainer):
    calls = []

    def note(name):
        return lambda trainer: calls.append((name, trainer.iter))

    names = ("before_train", "after_train", "before_step", "after_step")
    train(toy_trainer, CallbackHook(**{name: note(name) for name in names}), CallbackHook(), iterations=1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_timer(toy_trainer, engine_log):
    train(toy_trainer, IterationTimer(warmup_iter=3), iterations=8)
    times = toy_trainer.storage.history("time").values()
    assert [iteration for _, iteration in times] == [2, 3, 4, 5, 6, 7]
    assert engine_log[1].startswith("Overall training speed: 6 iterations in 0:00:00 (0.")
    assert engine_log[1].endswith(" s / it)")
    assert engine_log[2] == "Total training time: 0:00:00 (0:00:00 on hooks)"


def test_writers_run_at_the_period_the_last_step_and_the_end(toy_trainer):
    writer = CountingWriter()
    writer.trainer = toy_trainer
    train(toy_trainer, PeriodicWriter([writer], period=4), iterations=6)
    assert writer.iterations == [3, 5, 6]
    assert writer.closed


def test_only_writers_are_taken():
    with pytest.raises(AssertionError):
        PeriodicWriter([object()])


def test_periodic_checkpoints(toy_trainer, tmp_path):
    checkpointer = Checkpointer(toy_trainer.model, str(tmp_path))
    train(toy_trainer, PeriodicCheckpointer(checkpointer, 2, max_to_keep=1), iterations=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000003.pth",
        "model_final.pth",
    ]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 4


@pytest.mark.parametrize(("mode", "expected"), [("max", [1, 5]), ("min", [1, 3])])
def test_best_checkpoint(toy_trainer, mode, expected, engine_log):
    scores = iter([0.3, 0.2, 0.6, 0.25])
    saved = Saved()
    train(
        toy_trainer,
        EvalHook(2, lambda: {"bbox": {"NDS": next(scores)}}),
        BestCheckpointer(2, saved, "bbox/NDS", mode, file_prefix="best"),
        iterations=8,
    )
    assert saved.names == [("best", iteration) for iteration in expected]
    best = 0.6 if mode == "max" else 0.2
    assert "Saved first model at 0.30000 @ 1 steps" in engine_log
    assert (
        "Saved best model as latest eval score for bbox/NDS is "
        f"{best:0.5f}, better than last best score 0.30000 @ iteration 1."
    ) in engine_log


def test_best_checkpoint_without_the_metric(toy_trainer, engine_log):
    saved = Saved()
    train(toy_trainer, BestCheckpointer(2, saved, "bbox/NDS"), iterations=2)
    assert saved.names == []
    assert any("Given val metric bbox/NDS does not seem to be computed/stored" in line for line in engine_log)
    with pytest.raises(AssertionError, match="best"):
        BestCheckpointer(2, saved, "bbox/NDS", mode="best")


def test_scheduler_of_fvcore_s_kind(toy_trainer):
    train(toy_trainer, LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0)), iterations=4)
    values = toy_trainer.storage.history("lr").values()
    assert [value for value, _ in values] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert toy_trainer.storage.smoothing_hints()["lr"] is False


def test_scheduler_resumes(toy_trainer):
    def trainer():
        model = type(toy_trainer.model)()
        trainer = SimpleTrainer(model, [1.0] * 10, torch.optim.SGD(model.parameters(), lr=0.1))
        schedule = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=2, gamma=0.1)
        trainer.register_hooks([LRScheduler(trainer.optimizer, schedule)])
        return trainer

    first, second = trainer(), trainer()
    first.train(0, 3)
    second.load_state_dict(first.state_dict())
    second.train(3, 5)
    assert [value for value, _ in second.storage.history("lr").values()] == pytest.approx([0.01, 0.001])


def test_group_whose_rate_is_shown():
    def groups(*pairs):
        make = torch.zeros
        return torch.optim.SGD(
            [{"params": [make(1, requires_grad=True) for _ in range(n)], "lr": lr} for n, lr in pairs], lr=1
        )

    choose = LRScheduler.get_best_param_group_id
    assert choose(groups((1, 0.1), (3, 0.2), (2, 0.3), (3, 0.4))) == 1
    assert choose(groups((1, 0.1), (1, 0.2), (1, 0.2))) == 1


@pytest.mark.parametrize(
    ("period", "after", "expected"), [(2, True, [1, 3, 6]), (0, True, [6]), (4, False, [3])]
)
def test_evaluation_times(toy_trainer, period, after, expected):
    iterations = []
    train(toy_trainer, EvalHook(period, lambda: iterations.append(toy_trainer.iter), after), iterations=6)
    assert iterations == expected


def test_evaluation_results_reach_the_storage(toy_trainer):
    train(toy_trainer, EvalHook(1, lambda: {"bbox": {"NDS": 0.5, "car": {"AP": 0.25}}}), iterations=2)
    latest = toy_trainer.storage.latest()
    assert latest["bbox/NDS"] == (0.5, 2)
    assert latest["bbox/car/AP"] == (0.25, 2)


def test_evaluation_must_give_numbers(toy_trainer):
    with pytest.raises(ValueError, match=r"nested dict of float.*bbox/NDS: high"):
        train(toy_trainer, EvalHook(1, lambda: {"bbox": {"NDS": "high"}}), iterations=2)


def test_failed_training_is_not_evaluated(toy_trainer):
    calls = []
    toy_trainer.model.fail_at = 2
    with pytest.raises(RuntimeError):
        train(toy_trainer, EvalHook(0, lambda: calls.append(1)))
    assert calls == []


def test_memory_statistics(toy_trainer, engine_log, fake_cuda_memory):
    train(toy_trainer, TorchMemoryStats(period=2), iterations=3)
    sizes = " max_reserved_mem: 4MB  reserved_mem: 3MB  max_allocated_mem: 2MB  allocated_mem: 1MB "
    assert engine_log[1:] == [f" iter: 1 {sizes}", f" iter: 2 {sizes}"]


def test_no_memory_statistics_without_cuda(toy_trainer, engine_log, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train(toy_trainer, TorchMemoryStats(period=1), iterations=3)
    assert len(engine_log) == 1
