"""One run of an experiment: training, average of the last weights, score, and the file of its result."""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bevkd2
from bevkd2.checkpoint import load_file, model_state, save_file
from bevkd2.checkpoint.checkpointer import PERIODIC_FILES
from bevkd2.config import CfgNode, find_file
from bevkd2.d2 import build_model
from bevkd2.data.format import data_format
from bevkd2.data.synthetic.staging import MARKER
from bevkd2.distill import is_distillation, teacher_config
from bevkd2.distill.config import more_distillations
from bevkd2.engine import (
    build_trainer,
    check_datasets,
    default_argument_parser,
    evaluate,
    load_args,
    load_for_evaluation,
    run_training,
    setup,
)
from bevkd2.engine.gradient_report import gradient_report
from bevkd2.engine.metrics import read_metrics
from bevkd2.experiments.results import changed, file_digest, result_path, write_result
from bevkd2.experiments.spec import Experiment, Row, options

_SETTINGS = "settings.json"
_LAST_LOSSES = 0.1  # share of the training over which losses are averaged


def run_folder(output: Path, row: Row, seed: int) -> Path:
    """Returns where a run trains: ``OUTPUT/EXPERIMENT/ROW_SEED``.

    Args:
        output: of all experiments.
        row: the row; EXPERIMENT is its ``runs_of``.
        seed: one of the row's.
    """
    return output / row.runs_of / f"{row.name}_{seed}"


def run_settings(experiment: Experiment, row: Row, seed: int) -> dict[str, Any]:
    """Returns what the result of a run depends on: settings, and digests of files.

    Args:
        experiment: names the worlds and the metrics.
        row: the row.
        seed: one of the row's.

    Raises:
        FileNotFoundError: weights or a world do not exist.
    """
    weights = {n: file_digest(_existing(n, row)) for n in _weights(row.config_of(seed))}
    train, scored = (
        {world.root: file_digest(Path(world.root) / MARKER)}
        for world in (experiment.train, experiment.scored)
    )
    files = {"training_files": {**weights, **train}, "evaluation_files": scored}
    return experiment.settings(row, seed) | files


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a result was made with.

    Args:
        path: of the result.
    """
    settings: dict[str, Any] = json.loads(path.read_text())["settings"]
    return settings


def discard(experiment: Experiment, row: Row, seed: int, *, output: Path, results: Path) -> bool:
    """Removes what was made of a run with other settings: its result, and its folder.

    Args:
        experiment: what the YAML file says now.
        row: the row.
        seed: one of the row's.
        output: where all experiments train.
        results: of all experiments.

    Returns:
        Whether there was something.
    """
    path, folder = result_path(results, row, seed), run_folder(output, row, seed)
    new, found = run_settings(experiment, row, seed), False
    if path.is_file() and changed(path, read_settings(path), new, experiment):
        path.unlink()
        found = True
    old = folder / _SETTINGS
    if old.is_file() and changed(folder, json.loads(old.read_text()), new, experiment):
        shutil.rmtree(folder)
        found = True
    return found


def run_one(experiment: Experiment, row: Row, seed: int, *, output: Path, results: Path) -> Path:
    """Trains and scores one run, from its last checkpoint where it has begun; writes its result.

    Args:
        experiment, row, seed: the run.
        output: checkpoints and logs go to ``output/EXPERIMENT/ROW_SEED``.
        results: of all experiments.

    Returns:
        The path of the result.

    Raises:
        ValueError: what is in its folder was made with other settings, or another process runs it.
    """
    started = time.monotonic()
    folder, settings = run_folder(output, row, seed), run_settings(experiment, row, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        training = {key: settings[key] for key in ("training", "training_files")}
        _check_folder(folder, training, experiment)
        common = [*options(row, seed), "SOLVER.CHECKPOINTS_TO_KEEP", max(1, experiment.average_last)]
        resumed_at = _train(row, [*common, "OUTPUT_DIR", str(folder), "DATASETS.ROOT", experiment.train.root])
        scoring = [*common, "DATASETS.ROOT", experiment.scored.root]
        if experiment.average_last:
            weights = average_checkpoints(folder, experiment.average_last)
        else:
            weights = folder / "model_final.pth"
        if experiment.average_last or experiment.scored.root != experiment.train.root:
            place = ["OUTPUT_DIR", str(folder / "evaluation"), "MODEL.WEIGHTS", str(weights)]
            scores = _score(experiment, row, [*scoring, *place])
        else:  # the training ended with this evaluation
            scores = _score(experiment, row, [*scoring, "OUTPUT_DIR", str(folder)], evaluated=True)
        gradients = _gradients(row, [*common, "DATASETS.ROOT", experiment.train.root], folder)
        rows = read_metrics(folder / "metrics.json").rows
        length = row.config_of(seed).SOLVER.MAX_ITER
        content = {
            "experiment": row.runs_of,
            "row": row.name,
            "seed": seed,
            "settings": settings,
            "commit": source_commit(),
            "version": bevkd2.__version__,
            "torch": torch.__version__,
            "machine": {"processor": _processor(), "threads": torch.get_num_threads()},
            "seconds": round(time.monotonic() - started, 1),
            "resumed_at": resumed_at,
            **scores,
            "curve": _curve(rows, [*experiment.primary, *experiment.secondary], length),
            "losses": _last_losses(rows, length),
            "gradients": gradients,
        }
        path = result_path(results, row, seed)
        write_result(path, content)
    return path


def average_checkpoints(folder: Path, count: int) -> Path:
    """Averages the weights of the last checkpoints of a run.

    Args:
        folder: OUTPUT_DIR of the training.
        count: how many.

    Returns:
        The path of the average, with weights alone; counters of batches are those of the last checkpoint.

    Raises:
        ValueError: there are fewer checkpoints.
    """
    paths = sorted(folder.glob(PERIODIC_FILES))
    if len(paths) < count:
        raise ValueError(
            f"average_last is {count}, but {folder} has {len(paths)} checkpoints; set average_last or "
            "SOLVER.CHECKPOINT_PERIOD, and run it again with --rerun"
        )
    contents = [load_file(path) for path in paths[-count:]]
    states = [model_state(content, str(path)) for content, path in zip(contents, paths[-count:], strict=True)]
    average: dict[str, Any] = {"model": {name: _mean([s[name] for s in states]) for name in states[-1]}}
    if "classes" in contents[-1]:
        average["classes"] = contents[-1]["classes"]
    path = folder / "averaged.pth"
    save_file(average, path)
    return path


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[-1].is_floating_point():
        return values[-1]
    return torch.stack([value.double() for value in values]).mean(dim=0).to(values[-1].dtype)


def _train(row: Row, words: Sequence[Any]) -> int:
    """Trains to the end; returns the iteration at which it began."""
    args = default_argument_parser().parse_args(["--config-file", row.config, "--resume"])
    args.opts = list(words)
    cfg = setup(args)
    check_datasets(cfg, training=True)
    trainer = build_trainer(cfg, build_model(cfg), resume=True)
    start = int(trainer.start_iter)
    run_training(cfg, trainer)
    return start


def _gradients(row: Row, words: Sequence[Any], folder: Path) -> dict[str, dict[str, float | None]]:
    """Returns the share of every distillation loss at the end of the training, by part of the student."""
    args = default_argument_parser().parse_args(["--config-file", row.config])
    args.opts = list(words)
    cfg = load_args(args)
    if not (is_distillation(cfg) and (cfg.DISTILL.METHODS or cfg.DISTILL.MORE_TEACHERS)):
        return {}
    report = gradient_report(cfg, weights=folder / "model_final.pth")
    return {name: loss["share"] for name, loss in report["losses"].items() if "share" in loss}


def _score(
    experiment: Experiment, row: Row, words: Sequence[Any], *, evaluated: bool = False
) -> dict[str, Any]:
    args = default_argument_parser().parse_args(["--config-file", row.config, "--eval-only"])
    args.opts = list(words)
    cfg = setup(args)
    if not evaluated:
        check_datasets(cfg, training=False)
        model = build_model(cfg)
        load_for_evaluation(cfg, model, resume=False)
        evaluate(cfg, model)
    scorer = data_format(cfg).left_out_scorer(cfg, cfg.DATASETS.TEST[0])
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    found = scorer.score(folder, experiment.primary, experiment.secondary)
    return {"metrics": found.scores, "units": found.units, "without": found.without}


def _curve(
    rows: Mapping[int, Mapping[str, float]], metrics: Sequence[str], length: int
) -> list[dict[str, float]]:
    """Returns the scores during training, on the training world's own test split.

    Metrics at another IoU (``@``) are not scored there; what the evaluation has of that name is taken.
    """
    names = dict.fromkeys(name.partition("@")[0] for name in metrics)
    curve = []
    for iteration, row in rows.items():
        scores = {key.split("/", 1)[1]: value for key, value in row.items() if key.startswith("bbox/")}
        if scores:
            done = min(iteration + 1, length)  # the last evaluation comes one iteration after the last step
            curve.append({"iteration": done, **{n: scores[n] for n in names if n in scores}})
    return curve


def _last_losses(rows: Mapping[int, Mapping[str, float]], length: int) -> dict[str, float]:
    written = {iteration: row for iteration, row in rows.items() if "total_loss" in row}
    first = min((1 - _LAST_LOSSES) * length, max(written))
    last = [row for iteration, row in written.items() if iteration >= first]
    names = {key for row in last for key in row if key.startswith(("loss", "total_loss"))}
    of = {name: [row[name] for row in last if name in row] for name in sorted(names)}
    return {name: sum(values) / len(values) for name, values in of.items()}


def _check_folder(folder: Path, settings: Mapping[str, Any], experiment: Experiment) -> None:
    path = folder / _SETTINGS
    if path.is_file():
        if difference := changed(folder, json.loads(path.read_text()), settings, experiment):
            raise ValueError(difference)
    else:
        write_result(path, settings)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process runs {folder} already; wait for it, or end it") from error
        yield


def _weights(cfg: CfgNode) -> list[str]:
    """Returns the files of weights that a run starts from or learns from."""
    names = [cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.WEIGHTS]
    if is_distillation(cfg):
        names += [teacher_config(one).MODEL.WEIGHTS for one in (cfg, *more_distillations(cfg).values())]
    return [name for name in dict.fromkeys(names) if name and "://" not in name]


def _existing(name: str, row: Row) -> Path:
    path = find_file(name)
    if not path.is_file():
        raise FileNotFoundError(f"row {row.name}: the weights {name} do not exist; train or fetch them first")
    return path


def source_commit() -> str | None:
    """Returns the commit of the source tree, with a + where it was changed; None outside a repository."""
    place = Path(bevkd2.__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(place), *words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # git is not installed
            return None
        return None if done.returncode else done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
