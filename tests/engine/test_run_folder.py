"""OUTPUT_DIR of a run, and what an earlier one left there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import load_file
from bevkd2.d2 import build_model
from bevkd2.engine import NonFiniteLossError, build_trainer, evaluate, train
from bevkd2.engine.run_folder import (
    LOCK_FILE,
    claim,
    make_output_folder,
    output_folder,
    release,
    set_aside,
)
from tests.engine.toys import ToyEvaluator, ToyLoader, build_toy_loader, build_toy_test_loader, flat, toy_cfg


def toy_evaluate(cfg: Any, model: Any, **kwargs: Any) -> Any:
    return evaluate(cfg, model, build_loader=build_toy_test_loader, build_evaluator=ToyEvaluator, **kwargs)


def run(cfg: Any, resume: bool = False, poison: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)

    def build_loader(cfg: Any, start_iter: int) -> ToyLoader:
        return ToyLoader(cfg, start_iter, poison)

    train(cfg, model, resume=resume, build_loader=build_loader, evaluate=toy_evaluate)
    return model


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def iterations(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row["iteration"] for row in rows if "total_loss" in row]


@pytest.mark.parametrize(("value", "message"), [("", "is '', expected a folder"), (" ", "is ' '")])
def test_an_empty_folder_is_refused_before_anything_is_built(
    tmp_path: Path, value: str, message: str
) -> None:
    cfg = toy_cfg(tmp_path, "OUTPUT_DIR", value)
    with pytest.raises(ValueError, match=rf"OUTPUT_DIR {message}"):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
    with pytest.raises(ValueError, match=rf"OUTPUT_DIR {message}"):
        toy_evaluate(cfg, build_model(cfg))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"OUTPUT_DIR is '.*file', which is a file"):
        output_folder(toy_cfg(tmp_path / "file"))


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ValueError, match=r"OUTPUT_DIR is '.*link', a link to gone, which does not exist"):
        output_folder(toy_cfg(tmp_path / "link"))


@pytest.mark.parametrize("place", ["/proc/no/such", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"OUTPUT_DIR '.*' cannot be made \(.*\); name a folder"):
        make_output_folder(toy_cfg(tmp_path / place))


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Runs a function in a forked process, which then waits; returns its id as soon as the function ended."""
    running = []

    def begin(function: Callable[[], object]) -> int:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                function()
                os.write(write, b"done")
                signal.pause()
            finally:
                os._exit(1)
        running.append(pid)
        os.close(write)
        assert os.read(read, 4) == b"done"
        os.close(read)
        return pid

    yield begin
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_is_refused_while_one_runs(
    tmp_path: Path, start: Callable[..., int], resume: bool
) -> None:
    cfg = toy_cfg(tmp_path)
    run(cfg)

    def build() -> None:
        build_trainer(
            cfg, build_model(cfg), resume=True, build_loader=build_toy_loader, evaluate=toy_evaluate
        )

    pid = start(build)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"of a training that is running \(process {pid} on .*, since 20"):
        run(cfg, resume=resume)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_killed_training_leaves_no_lock_even_if_its_workers_live(
    tmp_path: Path, start: Callable[..., int]
) -> None:
    def claim_and_fork() -> None:
        claim(tmp_path)
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "worker").write_text(str(worker))

    pid = start(claim_and_fork)
    with pytest.raises(ValueError, match="is that of a training that is running"):
        claim(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, 0)  # it lives
    claim(tmp_path)
    os.kill(worker, signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    release(tmp_path)


def test_a_folder_is_free_when_its_training_has_ended(tmp_path: Path, start: Callable[..., int]) -> None:
    with pytest.raises(NonFiniteLossError):
        run(toy_cfg(tmp_path), poison=1)
    start(lambda: claim(tmp_path))


def test_two_trainings_in_one_folder_never_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = toy_cfg(tmp_path)
    first = run(cfg)
    with pytest.raises(NonFiniteLossError):  # the second one dies before its first checkpoint
        run(toy_cfg(tmp_path, "SOLVER.BASE_LR", 0.01), poison=1)
    earlier = tmp_path / "earlier_run_1"
    assert f"held an earlier training; its files are in {earlier} now" in caplog.text
    files = {
        "config.yaml",
        "inference",
        "last_checkpoint",
        "metrics.json",
        "model_best.pth",
        "model_final.pth",
    }
    assert files <= names(earlier) and iterations(earlier) == list(range(6))
    assert iterations(tmp_path) == [0] and not {"last_checkpoint", "model_best.pth"} & names(tmp_path)
    resumed = run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 3), resume=True)  # not from the first one
    assert iterations(tmp_path) == [0, 1, 2] and iterations(tmp_path / "earlier_run_2") == [0]
    kept = load_file(earlier / "model_final.pth")["model"]
    assert torch.equal(flat(first), torch.cat([value.flatten() for value in kept.values()]))
    assert not torch.equal(flat(resumed), flat(first))


def test_weights_of_the_earlier_training_may_be_those_that_a_new_one_starts_from(tmp_path: Path) -> None:
    first = run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 2))
    cfg = toy_cfg(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
    assert torch.equal(flat(trainer.model), flat(first)) and trainer.start_iter == 0


def test_files_of_the_user_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("model_published.pth", "notes.txt", "log.txt", "config.yaml"):
        (tmp_path / name).touch()
    set_aside(tmp_path)
    assert len(names(tmp_path)) == 4 and not caplog.text
    (tmp_path / "model_0000002.pth").touch()
    (tmp_path / "earlier_run_7").mkdir()
    set_aside(tmp_path)
    assert names(tmp_path / "earlier_run_8") == {"model_0000002.pth", "config.yaml"}
    assert {"model_published.pth", "notes.txt", "log.txt"} <= names(tmp_path)


def test_changed_settings_of_a_resumed_training_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(toy_cfg(tmp_path))
    caplog.clear()
    run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 7), resume=True)
    line = next(r.getMessage() for r in caplog.records if "other settings" in r.getMessage())
    assert line.endswith("hold from here on: SOLVER.MAX_ITER 6 -> 7")
    caplog.clear()
    run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 7), resume=True)
    assert "other settings" not in caplog.text
    assert "nothing to train: the checkpoint has done 7 iterations, and SOLVER.MAX_ITER is 7" in caplog.text


def test_a_damaged_config_of_the_earlier_part_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    run(cfg)
    (tmp_path / "config.yaml").write_text("SEED: [")
    with pytest.raises(ValueError, match=r"config\.yaml is not plain YAML"):
        build_trainer(
            cfg, build_model(cfg), resume=True, build_loader=build_toy_loader, evaluate=toy_evaluate
        )


def test_fewer_iterations_than_are_done_only_evaluate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(toy_cfg(tmp_path))
    again = run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 3), resume=True)
    assert "nothing to train: the checkpoint has done 6 iterations, and SOLVER.MAX_ITER is 3" in caplog.text
    assert torch.equal(flat(first), flat(again))
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 6 and "toy/score" in last
