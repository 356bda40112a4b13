"""The command that users run, with the real model, data and score, on a world of a few frames."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import CheckpointFileError, StateDictMismatchError, load_file
from bevkd2.cli import train as train_tool
from bevkd2.cli.console import run_cli
from bevkd2.config import CfgNode
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.engine import NonFiniteGradientError, NonFiniteLossError, default_argument_parser
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train_net.py"
SMALL = (
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("SOLVER.WARMUP_ITERS", "2"),
    *("TEST.PRINT_PERIOD", "1", "MODEL.BEVFORMER.BEV_SHAPE", "[8, 8]", "MODEL.BEVFORMER.NUM_QUERIES", "16"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.BEVFORMER.DROPOUT", "0.1"),
)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = WorldConfig(num_train_scenes=2, num_val_scenes=2, frames_per_scene=2, image_size=(88, 32))
    return generate(config, tmp_path_factory.mktemp("train_net") / "world", progress=False)


def words(config: str, world: Path, output: Path, *options: Any, flags: tuple[str, ...] = ()) -> list[str]:
    path = str(ROOT / "configs" / "demo" / config)
    tail = ["DATASETS.ROOT", str(world), "OUTPUT_DIR", str(output), *map(str, options)]
    return ["--config-file", path, *flags, *SMALL, *tail]


@pytest.fixture(scope="module")
def main() -> Run:
    """Calls the tool's main in this process."""
    return lambda *args, **kwargs: train_tool.run(
        default_argument_parser().parse_args(words(*args, **kwargs))
    )


@pytest.fixture(scope="module")
def teacher(main: Run, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("teacher")
    main("teacher.yaml", world, output)
    return output


def distillation(teacher: Path) -> tuple[str, ...]:
    opts = ["MODEL.BEVFORMER.BEV_SHAPE", [8, 8], "MODEL.BEVFORMER.NUM_QUERIES", 16]
    opts += ["MODEL.FPN.OUT_CHANNELS", 32]
    weights = str(teacher / "model_final.pth")
    return (
        *("DISTILL.TEACHER.WEIGHTS", weights, "DISTILL.TEACHER.OPTS", repr(opts)),
        *("DISTILL.TEACHER.EVALUATE", "True"),
    )


@pytest.fixture(scope="module")
def distilled(main: Run, world: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("distilled")
    main("distill.yaml", world, output, *distillation(teacher), "TEST.EVAL_PERIOD", "3")
    return output


def weights(path: Path) -> torch.Tensor:
    state = load_file(path)["model"]
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def test_teacher_is_trained_and_scored(teacher: Path) -> None:
    found = {path.name for path in teacher.iterdir()}
    checkpoints = {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "inference", *checkpoints} <= found
    assert any(name.startswith("events.out.tfevents") for name in found)
    assert (teacher / "inference" / "results_nusc.json").is_file()
    assert "copypaste: Task: bbox" in (teacher / "log.txt").read_text()


def test_distillation_logs_teacher_losses_and_score(distilled: Path) -> None:
    rows = [json.loads(line) for line in (distilled / "metrics.json").read_text().splitlines()]
    logged: dict[str, Any] = {}
    for row in rows:
        logged.update(row)
    assert {"teacher/bbox/NDS", "bbox/NDS", "grad_norm", "max_mem_mb"} <= set(logged)
    terms = [name for name in logged if name.startswith("loss_distill_")]
    assert len(terms) >= 3 and all(math.isfinite(logged[name]) for name in terms)


def test_student_of_a_checkpoint_is_the_plain_student(
    main: Run, world: Path, distilled: Path, tmp_path: Path
) -> None:
    best = ("MODEL.WEIGHTS", distilled / "model_final.pth")
    plain = main("student.yaml", world, tmp_path / "plain", *best, flags=("--eval-only",))
    # The distillation's config needs no teacher to evaluate its student.
    gone = ("DISTILL.TEACHER.WEIGHTS", "gone.pth", "DISTILL.TEACHER.CONFIG", "gone.yaml")
    other = main("distill.yaml", world, tmp_path / "other", *best, *gone, flags=("--eval-only",))
    assert plain["bbox"] == pytest.approx(other["bbox"], nan_ok=True) and "NDS" in plain["bbox"]
    assert not (tmp_path / "plain" / "config.yaml").exists()


def test_resumed_distillation_equals_an_uninterrupted_one(
    main: Run, world: Path, teacher: Path, distilled: Path, tmp_path: Path
) -> None:
    def stop(self: Any) -> None:
        if self.trainer.iter == 2:
            raise KeyboardInterrupt

    options = (*distillation(teacher), "DISTILL.TEACHER.EVALUATE", "False")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bevkd2.engine.hooks.PeakMemory.before_step", stop)
        main("distill.yaml", world, tmp_path, *options)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    main("distill.yaml", world, tmp_path, *options, flags=("--resume",))
    assert torch.equal(weights(tmp_path / "model_final.pth"), weights(distilled / "model_final.pth"))


def test_nothing_to_evaluate(main: Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-only has no weights to evaluate"):
        main("student.yaml", world, tmp_path, flags=("--eval-only",))
    with pytest.raises(ValueError, match=r"has no checkpoint"):
        main("student.yaml", world, tmp_path, flags=("--eval-only", "--resume"))


def test_weights_of_another_model(main: Run, world: Path, teacher: Path, tmp_path: Path) -> None:
    final = ("MODEL.WEIGHTS", teacher / "model_final.pth")
    with pytest.raises(
        StateDictMismatchError,
        match=r"model_final\.pth does not fit BEVFormer: \d+ keys of another shape: image_backbone",
    ):
        main("student.yaml", world, tmp_path, *final, flags=("--eval-only",))
    state = load_file(teacher / "model_final.pth")["model"]
    seven = {
        name: value[:7] if "class_branches" in name and len(value) == 10 else value
        for name, value in state.items()
    }
    torch.save({"model": seven}, tmp_path / "seven.pth")
    with pytest.raises(
        StateDictMismatchError, match=r"seven\.pth .*\(7,\) instead of \(10,\).*number of classes"
    ):
        main("teacher.yaml", world, tmp_path, "MODEL.WEIGHTS", tmp_path / "seven.pth", flags=("--eval-only",))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("DATASETS.ROOT", "nowhere", FileNotFoundError, r"'nowhere' does not exist.*make-synthetic"),
        ("DATASETS.VERSION", "v9", FileNotFoundError, r"no version 'v9'"),
        ("DATASETS.TRAIN", "('tain',)", ValueError, r"no split 'tain'; splits there: "),
        ("DATASETS.TEST", "('vall',)", ValueError, r"no split 'vall'; splits there: "),
        ("DATASETS.TEST", "()", ValueError, r"DATASETS\.TEST is empty"),
    ],
)
def test_wrong_dataset_is_named_before_the_first_step(
    main: Run, world: Path, tmp_path: Path, key: str, value: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        main("student.yaml", world, tmp_path, key, value)
    assert not (tmp_path / "metrics.json").exists()  # opened before the first step


def test_what_only_the_loader_refuses_is_the_users_error(main: Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        main("student.yaml", world, tmp_path, "DATALOADER.NUM_WORKERS", "-1")


def test_a_full_disk_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped:
        iter, has_begun = 7, True

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code), "model_0000007.pth")

    monkeypatch.setattr(train_tool, "run_training", fail)
    code = errno.ENOSPC
    with pytest.raises(
        OSError, match=r"stopped at iteration 7: OUTPUT_DIR o cannot be written .*No space.*--resume"
    ):
        train_tool._run_training(CfgNode({"OUTPUT_DIR": "o"}), Stopped())
    code = errno.ENOENT  # a fault of the program
    with pytest.raises(RuntimeError, match="failed at iteration 7"):
        train_tool._run_training(CfgNode({"OUTPUT_DIR": "o"}), Stopped())


@pytest.mark.parametrize("kind", [NonFiniteLossError, NonFiniteGradientError])
def test_a_loss_that_is_not_finite_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[FloatingPointError]
) -> None:
    class Stopped:
        iter, has_begun = 7, True

    def fail(*_: Any) -> None:
        raise kind("iteration 7: loss_cls=nan on the samples a. Lower SOLVER.BASE_LR")

    monkeypatch.setattr(train_tool, "run_training", fail)
    assert run_cli(lambda words: train_tool._run_training(CfgNode({}), Stopped()), []) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: iteration 7: loss_cls=nan on the samples a.") and "Traceback" not in err


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "DISTILL.TEACHER.WEIGHTS"])
def test_pickle_bomb_as_weights_is_refused_and_not_executed(
    main: Run, world: Path, teacher: Path, tmp_path: Path, key: str
) -> None:
    mark, bomb = tmp_path / "sprung", tmp_path / "bomb.pth"
    torch.save({"model": Bomb(mark)}, bomb)
    with pytest.raises(CheckpointFileError, match=r"bomb\.pth is refused: .*could run code"):
        main("distill.yaml", world, tmp_path / "out", *distillation(teacher), key, bomb)
    assert not mark.exists()
    torch.load(bomb, weights_only=False)
    assert mark.exists(), "the bomb must be live, or this test shows nothing"


def test_loss_that_is_not_finite_names_its_samples(main: Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"iteration \d: .*loss_\w+=(nan|inf).* on the samples \w{32}, \w{32}"
    ):
        main("student.yaml", world, tmp_path, "MODEL.BEVFORMER.LOSS.BOX_WEIGHT", "1e39")


@pytest.mark.slow
def test_two_processes_distil_under_torchrun(world: Path, teacher: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT]
    done = subprocess.run(
        [*torchrun, *words("distill.yaml", world, tmp_path, *distillation(teacher))],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model_final.pth").is_file() and (tmp_path / "log.txt.rank1").is_file()
    assert "eta" in done.stdout
    results = json.loads((tmp_path / "inference" / "results_nusc.json").read_text())
    assert len(results["results"]) == 4  # every sample of both scenes, from both processes


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_asked_for_where_there_is_none(main: Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"MODEL\.DEVICE is 'cuda', but this PyTorch .* add MODEL\.DEVICE cpu"
    ):
        main("student.yaml", world, tmp_path, "MODEL.DEVICE", "cuda")
