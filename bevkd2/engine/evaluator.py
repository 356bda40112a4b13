"""Scoring a model on the test splits of a config."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import nn

from bevkd2.checkpoint import Checkpointer
from bevkd2.config import fixed_classes, stored_classes
from bevkd2.d2 import DatasetEvaluator, comm, inference_on_dataset, print_csv_format
from bevkd2.data.format import data_format, load_dataset
from bevkd2.data.loader import build_test_loader
from bevkd2.data.targets import check_targets
from bevkd2.engine.defaults import write_config
from bevkd2.engine.run_folder import output_folder
from bevkd2.nuscenes.layout import is_below_root

_logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
    """Builds the evaluator of a split, that of its data format.

    Args:
        cfg: the config; reads DATASETS.
        split: one of DATASETS.TEST.
        output_dir: where results are written.

    Raises:
        ValueError: DATASETS.FORMAT is unknown.
    """
    return data_format(cfg).evaluator(cfg, split, output_dir)


def check_datasets(cfg: CfgNode, *, training: bool) -> None:
    """Loads the index of every split that a run will read, so that a wrong one is named before it starts.

    Without it, a wrong name in DATASETS.TEST, or a wrong setting that only an evaluation reads, would be
    found after the last step.

    Args:
        cfg: the config; reads DATASETS, INPUT, TEST and what the format adds.
        training: whether DATASETS.TRAIN will be read as well as DATASETS.TEST.

    Raises:
        FileNotFoundError: root, version, a table or an image does not exist.
        ValueError: DATASETS.TEST is empty, no such split, a table that cannot be, a setting of the samples or
            the score that cannot be, or training splits without an object to learn from.
    """
    for split in dict.fromkeys([*(cfg.DATASETS.TRAIN if training else ()), *_test_splits(cfg)]):
        load_dataset(cfg, split)
    data_format(cfg).mapper(cfg, is_train=False)
    if training:
        for split in cfg.DATASETS.TEST:
            build_evaluator(cfg, split, output_folder(cfg) / "inference")
        check_targets(cfg)


def _test_splits(cfg: CfgNode) -> list[str]:
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name the splits to evaluate on, such as ('val',)")
    splits = list(cfg.DATASETS.TEST)
    for split in splits:  # results of several splits are in folders of their names
        if not is_below_root(split):
            raise ValueError(
                f"DATASETS.TEST names the split {split!r}, which is a path out of the folder of the results; "
                "rename the split"
            )
    return splits


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    *,
    folder: str = "inference",
    build_loader: Callable[[CfgNode, str], Iterable[list[dict[str, Any]]]] = build_test_loader,
    build_evaluator: Callable[[CfgNode, str, Path], DatasetEvaluator] = build_evaluator,
) -> OrderedDict[str, Any]:
    """Scores a model on every split of DATASETS.TEST; all processes take part.

    Args:
        cfg: the config.
        model: a model, not in DistributedDataParallel; in eval mode meanwhile. Its buffers, such as running
            statistics, become those of the main process, which a checkpoint holds.
        folder: where in OUTPUT_DIR results are written, one folder a split where there are several.
        build_loader: (cfg, split) -> iterable of batches with a length.
        build_evaluator: (cfg, split, output folder) -> evaluator.

    Returns:
        Task -> metric -> score where there is one split, else split -> task -> metric -> score; empty but on
        the main process.

    Raises:
        ValueError: DATASETS.TEST is empty.
    """
    splits = _test_splits(cfg)
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    results: OrderedDict[str, Any] = OrderedDict()
    for split in splits:
        output_dir = output_folder(cfg) / folder / (split if len(splits) > 1 else "")
        if comm.is_main_process():
            output_dir.mkdir(parents=True, exist_ok=True)
        evaluator = build_evaluator(cfg, split, output_dir)
        scores = inference_on_dataset(model, build_loader(cfg, split), evaluator)
        if comm.is_main_process():
            _logger.info("results on %s:", split)
            print_csv_format(scores)
            results[split] = scores
    return OrderedDict(results[splits[0]]) if len(splits) == 1 and results else results


def load_for_evaluation(cfg: CfgNode, model: nn.Module, *, resume: bool) -> None:
    """Loads the weights that are to be scored, every key matched: MODEL.ALLOW_MISSING does not hold here.

    When they are loaded, it writes the config to ``inference`` in OUTPUT_DIR.

    Args:
        cfg: the config; reads MODEL.WEIGHTS and OUTPUT_DIR.
        model: the model.
        resume: take the last checkpoint in OUTPUT_DIR, by the rules of a resumed training, not
            MODEL.WEIGHTS.

    Raises:
        ValueError: no weights are named, there is no checkpoint to resume from, or a key does not match.
    """
    checkpointer = Checkpointer(
        model, cfg.OUTPUT_DIR, classes=stored_classes(cfg), fixed_classes=fixed_classes(cfg)
    )
    if resume and not checkpointer.has_checkpoint():
        raise ValueError(
            f"--eval-only --resume: OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint; train first, or leave out "
            "--resume and set MODEL.WEIGHTS"
        )
    if not (resume or cfg.MODEL.WEIGHTS):
        raise ValueError(
            "--eval-only has no weights to evaluate: add MODEL.WEIGHTS path/to/model_final.pth, or --resume "
            "for the last checkpoint in OUTPUT_DIR"
        )
    if resume:
        checkpointer.load_last(checkpointables=[])
    else:
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    write_config(cfg, "inference")
