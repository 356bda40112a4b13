"""Where the embedded engine mends a fault of Detectron2's; each test fails on Detectron2 at 02b5c4e2."""

import logging
import sys

import pytest
import torch
import yaml
from fvcore.common.checkpoint import Checkpointer

from bevkd2.d2 import (
    BestCheckpointer,
    CfgNode,
    CommonMetricPrinter,
    DatasetCatalog,
    EvalHook,
    EventStorage,
    HookBase,
    Registry,
    SimpleTrainer,
    TorchMemoryStats,
    configurable,
    inference_context,
    setup_logger,
    verify_results,
)

pytestmark = pytest.mark.usefixtures("embedded_only")


class Counter(HookBase):
    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def test_model_leaves_eval_mode_when_inference_fails():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError), inference_context(model):
        raise RuntimeError
    assert model.training


def test_all_stateful_hooks_of_one_class_are_saved_and_restored(toy_trainer):
    toy_trainer.register_hooks([Counter(1), Counter(2), Counter(3)])
    state = toy_trainer.state_dict()
    assert state["hooks"] == {"Counter": {"value": 1}, "Counter#1": {"value": 2}, "Counter#2": {"value": 3}}
    other = SimpleTrainer(toy_trainer.model, [], toy_trainer.optimizer)
    hooks = [Counter(), Counter(), Counter()]
    other.register_hooks(hooks)
    other.load_state_dict(state)
    assert [hook.value for hook in hooks] == [1, 2, 3]


def test_unknown_names_are_answered_with_near_matches():
    registry = Registry("META_ARCH")
    with pytest.raises(KeyError, match="the module that registers them is not imported"):
        registry.get("BEVFormer")
    registry.register(CfgNode)
    registry.register(EventStorage)
    with pytest.raises(KeyError, match=r"Did you mean 'EventStorage'\?"):
        registry.get("EventStorrage")
    with pytest.raises(KeyError, match="Known names: CfgNode, EventStorage"):
        registry.get("BEVFormer")
    DatasetCatalog.register("bevkd2_mends_train", list)
    with pytest.raises(KeyError, match="Did you mean 'bevkd2_mends_train'"):
        DatasetCatalog.get("bevkd2_mend_train")
    DatasetCatalog.remove("bevkd2_mends_train")


def test_name_scope_ends_with_a_failure():
    storage = EventStorage()
    with pytest.raises(RuntimeError), storage.name_scope("teacher"):
        raise RuntimeError
    storage.put_scalar("loss", 1.0)
    assert set(storage.latest()) == {"loss"}


def test_failure_in_the_metrics_thread_is_raised(toy_trainer):
    model, loader = toy_trainer.model, [1.0, float("nan"), 1.0, 1.0]
    trainer = SimpleTrainer(model, loader, toy_trainer.optimizer, async_write_metrics=True)
    with pytest.raises(FloatingPointError, match="iteration=1"):
        trainer.train(0, 4)


def test_hooks_read_the_last_metrics_of_the_thread(toy_trainer):
    seen = []

    class Look(HookBase):
        def after_train(self):
            seen.append(self.trainer.storage.latest()["total_loss"][1])

    trainer = SimpleTrainer(toy_trainer.model, [1.0] * 5, toy_trainer.optimizer, async_write_metrics=True)
    trainer.register_hooks([Look()])
    trainer.train(0, 5)
    assert seen == [4]


def test_configs_cannot_run_code(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nA: !!python/object/apply:os.getpid []\n")
    cfg = CfgNode({"VERSION": 2, "A": 0})
    with pytest.raises(yaml.constructor.ConstructorError):
        cfg.merge_from_file(str(path))
    with pytest.raises(ValueError, match="allow_unsafe=True would run code"):
        cfg.merge_from_file(str(path), allow_unsafe=True)


def test_config_without_version_loads_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("A: 1\n")
    cfg = CfgNode({"A": 0})
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    assert cfg.A == 1
    with pytest.raises(FileNotFoundError, match=r"d\.yaml' does not exist"):
        cfg.merge_from_file(str(tmp_path / "d.yaml"))


def test_configurable_needs_no_omegaconf(monkeypatch):
    monkeypatch.setitem(sys.modules, "omegaconf", None)

    @configurable(from_config=lambda cfg: {"a": cfg.A})
    def build(a):
        return a

    assert build(CfgNode({"A": 3})) == 3


def test_best_checkpoint_survives_a_restart(toy_trainer, tmp_path):
    def run(trainer, score, start, end):
        best = BestCheckpointer(1, checkpointer, "bbox/NDS")
        trainer.register_hooks([EvalHook(1, lambda: {"bbox": {"NDS": score}}), best])
        if start:
            trainer.load_state_dict(first.state_dict())
        trainer.train(start, end)
        return best

    checkpointer = Checkpointer(toy_trainer.model, str(tmp_path))
    first = toy_trainer
    run(first, 0.5, 0, 2)
    saved = (tmp_path / "model_best.pth").stat().st_mtime_ns
    second = SimpleTrainer(first.model, [1.0] * 9, first.optimizer)
    assert run(second, 0.4, 2, 4).best_metric == 0.5
    assert (tmp_path / "model_best.pth").stat().st_mtime_ns == saved


def test_best_score_of_another_metric_is_not_taken_over(tmp_path, caplog):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))
    first, same, other = (BestCheckpointer(1, checkpointer, name) for name in ("a/x", "a/x", "a/y"))
    first.best_metric, first.best_iter = 0.5, 3
    same.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    assert (same.best_metric, other.best_metric) == (0.5, None)
    assert "The best score so far is of a/x; that of a/y begins with the next evaluation" in caplog.text
    other.load_state_dict({"best_metric": 0.25, "best_iter": 1})  # of 0.1
    assert other.best_metric == 0.25


def test_score_that_is_not_finite_is_not_saved(toy_trainer, tmp_path):
    scores = iter([0.5, float("inf"), 0.4])
    checkpointer = Checkpointer(toy_trainer.model, str(tmp_path))
    best = BestCheckpointer(1, checkpointer, "bbox/NDS")
    toy_trainer.register_hooks([EvalHook(1, lambda: {"bbox": {"NDS": next(scores)}}), best])
    toy_trainer.train(0, 3)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 0


def test_failure_of_the_last_step_is_not_evaluated(toy_trainer):
    calls = []
    toy_trainer.register_hooks([EvalHook(0, lambda: calls.append(1))])
    toy_trainer.model.fail_at = 2
    with pytest.raises(RuntimeError, match="made to fail"):
        toy_trainer.train(0, 3)
    assert calls == []


def test_line_of_progress_twice_in_one_iteration(engine_log):
    with EventStorage(3):
        printer = CommonMetricPrinter(max_iter=10)
        printer.write()
        printer.write()
    assert len(engine_log) == 2


def test_resuming_a_finished_run_does_nothing(toy_trainer):
    toy_trainer.train(5, 5)
    assert toy_trainer.iter == toy_trainer.storage.iter == 5


def test_missing_task_is_a_missed_result():
    cfg = CfgNode({"TEST": {"EXPECTED_RESULTS": [["bbox", "NDS", 0.5, 0.1]]}})
    with pytest.raises(SystemExit):
        verify_results(cfg, {})


def test_log_file_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup_logger("plain.log", name="bevkd2_mends_plain", configure_stdout=False).info("hello")
    assert "hello" in (tmp_path / "plain.log").read_text()


def test_short_name_on_the_console_does_not_reach_the_file(tmp_path, capsys):
    setup_logger(str(tmp_path), name="bevkd2_mends", abbrev_name="short")
    logging.getLogger("bevkd2_mends.part").info("hello")
    assert "bevkd2_mends.part INFO: hello" in (tmp_path / "log.txt").read_text()
    assert "short.part" in capsys.readouterr().out


def test_memory_statistics_stop_after_max_runs(toy_trainer, engine_log, fake_cuda_memory):
    toy_trainer.register_hooks([TorchMemoryStats(period=1, max_runs=2)])
    toy_trainer.train(0, 5)
    assert sum("max_reserved_mem" in line for line in engine_log) == 2
    assert engine_log[-1] == "\nsummary"
