"""Whole trainings of the toy model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import load_file
from bevkd2.d2 import PROVIDER, HookBase, build_model
from bevkd2.engine import NonFiniteLossError, build_trainer, evaluate, train
from tests.engine.toys import ToyEvaluator, ToyLoader, build_toy_loader, build_toy_test_loader, flat, toy_cfg

DISTILL = ("MODEL.META_ARCHITECTURE", "ToyDistiller")


def toy_evaluate(cfg: Any, model: Any, **kwargs: Any) -> Any:
    return evaluate(cfg, model, build_loader=build_toy_test_loader, build_evaluator=ToyEvaluator, **kwargs)


def run(
    cfg: Any, resume: bool = False, build_loader: Callable[..., Any] = build_toy_loader
) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    train(cfg, model, resume=resume, build_loader=build_loader, evaluate=toy_evaluate)
    return model


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Interrupt(ToyLoader):
    """Fails as a machine does, when the batch of iteration 4 is wanted."""

    def __iter__(self) -> Any:
        for iteration, batch in enumerate(super().__iter__()):
            if iteration + self._start == 4:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16", "SOLVER.ACCUMULATION_STEPS", 2),
        DISTILL,
    ],
)
def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, options: tuple[Any, ...]) -> None:
    straight = run(toy_cfg(tmp_path / "straight", *options))
    cfg = toy_cfg(tmp_path / "stopped", *options, "TEST.EVAL_PERIOD", 2)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, build_loader=Interrupt)
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000002.pth"
    resumed = run(cfg, resume=True)
    assert torch.equal(flat(straight), flat(resumed))
    a, b = (load_file(tmp_path / folder / "model_final.pth") for folder in ("straight", "stopped"))
    assert a["trainer"]["iteration"] == b["trainer"]["iteration"] == 5
    assert a["trainer"]["grad_scaler"] == b["trainer"]["grad_scaler"]
    for key, state in a["trainer"]["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["trainer"]["optimizer"]["state"][key][name])


def test_without_resume_training_starts_from_the_beginning(tmp_path: Path) -> None:
    first = run(toy_cfg(tmp_path))
    again = run(toy_cfg(tmp_path))
    assert torch.equal(flat(first), flat(again))


def test_resuming_a_finished_training_only_evaluates(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    first = run(cfg)
    model = build_model(cfg)
    results = train(cfg, model, resume=True, build_loader=build_toy_loader, evaluate=toy_evaluate)
    assert torch.equal(flat(first), flat(model)) and results["toy"]["count"] == 6


@pytest.mark.skipif(
    PROVIDER != "embedded", reason="Detectron2's BestCheckpointer keeps no state; the log warns"
)
def test_resumed_training_keeps_a_better_model_than_its_checkpoint_knows_of(tmp_path: Path) -> None:
    # After iterations 1 and 3, then the interruption; after 3 again, for it may have come before the score,
    # after 5, and at the end.
    scores = iter([5.0, 9.0, 9.0, 7.0, 8.0])

    def score(cfg: Any, model: Any) -> Any:
        return {"toy": {"score": next(scores)}}

    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.MAX_ITER", 8)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, build_model(cfg), build_loader=Interrupt, evaluate=score)
    best = (tmp_path / "model_best.pth").read_bytes()
    assert load_file(tmp_path / "model_best.pth")["iteration"] == 3
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    train(cfg, build_model(cfg), resume=True, build_loader=build_toy_loader, evaluate=score)
    assert (tmp_path / "model_best.pth").read_bytes() == best


@pytest.mark.skipif(PROVIDER != "embedded", reason="Detectron2's BestCheckpointer keeps no state")
def test_a_damaged_best_model_is_replaced_by_the_next_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 2)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, build_loader=Interrupt)
    (tmp_path / "model_best.pth").write_bytes(b"torn")
    run(cfg, resume=True)
    assert re.search(r"model_best\.pth is damaged.* the next evaluation replaces it", caplog.text)
    assert load_file(tmp_path / "model_best.pth")["iteration"] >= 3


def test_output_folder(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path, *DISTILL, "TEST.EVAL_PERIOD", 3, "SOLVER.CHECKPOINTS_TO_KEEP", 1))
    found = names(tmp_path)
    assert {"config.yaml", "metrics.json", "model_0000005.pth", "model_best.pth", "inference"} <= found
    assert "model_0000002.pth" not in found and any(name.startswith("events.out.tfevents") for name in found)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == list(range(6))
    keys = set().union(*rows)
    assert {
        "lr",
        "grad_norm",
        "loss_distill_kd",
        "max_mem_mb",
        "data_time",
        "toy/score",
        "eta_seconds",
    } <= keys
    assert set(load_file(tmp_path / "model_final.pth")) == {"model", "distill", "trainer", "iteration"}


def test_distillation_checkpoint_is_evaluated_as_the_plain_student(tmp_path: Path) -> None:
    trained = run(toy_cfg(tmp_path / "distill", *DISTILL))
    plain = toy_cfg(tmp_path / "plain", "MODEL.WEIGHTS", str(tmp_path / "distill" / "model_final.pth"))
    trainer = build_trainer(plain, build_model(plain), build_loader=build_toy_loader, evaluate=toy_evaluate)
    assert torch.equal(flat(trainer.model), flat(trained.student))
    assert trainer.start_iter == 0


def test_nan_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"iteration 4: loss_cls=nan .*token16, token17"):
        run(cfg, build_loader=lambda cfg, start_iter: ToyLoader(cfg, start_iter, poison=4))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not {"model_final.pth", "model_best.pth"} & names(tmp_path)
    state = load_file(tmp_path / "model_0000002.pth")
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert [path.suffix for path in tmp_path.iterdir() if ".tmp" in path.name] == []


class Spoil(HookBase):
    """Writes to the inherited parameter at an iteration."""

    def __init__(self, at: int) -> None:
        self._at = at

    def after_backward(self) -> None:
        if self.trainer.iter == self._at:
            with torch.no_grad():
                self.trainer.model.student.image_backbone.bias.fill_(11.0)


@pytest.mark.parametrize(("at", "found_at", "eval_period"), [(0, 1, 2), (1, 2, 0), (4, 5, 0)])
def test_changed_inherited_parameter_stops_training_before_saving(
    tmp_path: Path, at: int, found_at: int, eval_period: int
) -> None:
    cfg = toy_cfg(tmp_path, *DISTILL, "TEST.EVAL_PERIOD", eval_period)
    scored: list[Any] = []

    def evaluate(*arguments: Any) -> dict[str, Any]:
        scored.append(arguments)
        return {}

    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=evaluate)
    trainer.register_hooks([Spoil(at)])
    with pytest.raises(RuntimeError, match=r"image_backbone\.bias differs by up to 11"):
        trainer.train(0, 6)
    assert trainer.iter == found_at
    # After a failure in the very last step, Detectron2's EvalHook still evaluates.
    assert scored == [] or found_at == 5
    for path in tmp_path.glob("model_*.pth"):
        assert load_file(path)["model"]["image_backbone.bias"].abs().max() < 11, path.name


def test_hooks_run_in_the_documented_order(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, *DISTILL)
    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
    order = [type(hook).__name__ for hook in trainer._hooks]
    expected = ["IterationTimer", "LRScheduler", "VerifyInherited", "PeriodicCheckpointer", "Evaluate"]
    assert [name for name in order if name in expected] == expected
    assert order.index("Evaluate") < order.index("BestCheckpointer") < order.index("PeriodicWriter")


def test_learning_rate_follows_the_schedule_over_a_resume(tmp_path: Path) -> None:
    for folder, resume in (("straight", False), ("stopped", True)):
        cfg = toy_cfg(tmp_path / folder)
        if resume:
            with pytest.raises(KeyboardInterrupt):
                run(cfg, build_loader=Interrupt)
        run(cfg, resume=resume)
    straight, stopped = (
        {
            (row["iteration"], row["lr"])
            for row in map(json.loads, (tmp_path / name / "metrics.json").open())
            if "lr" in row
        }
        for name in ("straight", "stopped")
    )
    assert straight == stopped and len(straight) == 6


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.CHECKPOINT_PERIOD", 0), ("TEST.PRINT_PERIOD", 0), ("TEST.EVAL_PERIOD", -1)]
)
def test_wrong_period_is_named_before_the_first_step(tmp_path: Path, key: str, value: int) -> None:
    cfg = toy_cfg(tmp_path, key, value)
    with pytest.raises(
        ValueError, match=rf"{re.escape(key)}: {value} is too small; expected at least {value + 1}"
    ):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", 0.0, "is not positive; expected a number above 0"),
        ("SOLVER.BASE_LR", float("nan"), "is not positive; expected a number above 0"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0, "is not positive; expected a number above 0"),
        ("SOLVER.BACKBONE_MULTIPLIER", -0.1, "is too small; expected at least 0"),
        ("SOLVER.WARMUP_ITERS", -1, "is too small; expected at least 0"),
    ],
)
def test_wrong_rate_is_named_before_the_first_step(
    tmp_path: Path, key: str, value: float, message: str
) -> None:
    cfg = toy_cfg(tmp_path, key, value)
    with pytest.raises(ValueError, match=rf"{re.escape(key)}: {value} {message}"):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)


def test_a_resumed_training_keeps_as_many_checkpoints(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "SOLVER.CHECKPOINTS_TO_KEEP", 2, "SOLVER.CHECKPOINT_PERIOD", 1)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, build_loader=Interrupt)
    (tmp_path / "model_0000005.pth").write_bytes(b"")  # of a run that went on from here before: saved again
    (tmp_path / "model_00.pth").write_bytes(b"the user's own")
    run(cfg, resume=True)
    assert (tmp_path / "model_00.pth").is_file()
    periodic = {name for name in names(tmp_path) if re.fullmatch(r"model_\d{7}\.pth", name)}
    assert periodic == {"model_0000004.pth", "model_0000005.pth"}


def test_all_checkpoints_are_kept_where_the_number_is_zero(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path, "SOLVER.CHECKPOINTS_TO_KEEP", 0, "SOLVER.CHECKPOINT_PERIOD", 1))
    assert {f"model_{i:07d}.pth" for i in range(6)} <= names(tmp_path)


def test_wrong_amp_type_is_named(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "SOLVER.AMP.DTYPE", "float8")
    with pytest.raises(
        ValueError, match=r"SOLVER\.AMP\.DTYPE: 'float8' is unknown; expected one of bfloat16, float16"
    ):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)


def test_expected_results_end_the_program_where_they_are_missed(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "TEST.EXPECTED_RESULTS", [["toy", "count", 7, 0.5]])
    with pytest.raises(SystemExit):
        run(cfg)


def test_progress_line_has_eta_and_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(toy_cfg(tmp_path))
    lines = [r.getMessage() for r in caplog.records if "total_loss" in r.getMessage()]
    assert len(lines) == 6 and all(re.search(r"iter: \d+ .*total_loss: .* lr: ", line) for line in lines)
    assert "eta: " in lines[-1] and "peak memory" in caplog.text and "Overall training speed" in caplog.text


def test_frozen_stages_with_random_weights_are_an_error_before_the_first_step(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "MODEL.BACKBONE.FREEZE_AT", 2)
    with pytest.raises(
        ValueError, match=r"FREEZE_AT is 2, .*random weights.*BACKBONE\.WEIGHTS.*FREEZE_AT to 0"
    ):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
    cfg.MODEL.BACKBONE.WEIGHTS = "loaded by build_model"
    build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
