"""From a config to a trainer with its hooks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bevkd2.checkpoint import Checkpointer, CheckpointFileError, load_file
from bevkd2.checkpoint.checkpointer import PERIODIC_FILES
from bevkd2.config import fixed_classes, stored_classes
from bevkd2.d2 import (
    BestCheckpointer,
    CommonMetricPrinter,
    EventWriter,
    HookBase,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
    TensorboardXWriter,
    comm,
    verify_results,
)
from bevkd2.data import data_format
from bevkd2.data.loader import build_train_loader
from bevkd2.distill import Distiller, is_distillation, teacher_config
from bevkd2.engine.acceleration import CountGraphs, prepare_model
from bevkd2.engine.defaults import write_config
from bevkd2.engine.evaluator import evaluate
from bevkd2.engine.hooks import (
    HOOK_REGISTRY,
    AverageWeights,
    Evaluate,
    EvaluateTeacher,
    InheritsWeights,
    LooksForUnreached,
    PeakMemory,
    ProgressBar,
    VerifyInherited,
    WarnOfUnreached,
)
from bevkd2.engine.metrics import MetricsHistory, MetricsWriter
from bevkd2.engine.run_folder import (
    claim,
    log_changed_settings,
    make_output_folder,
    output_folder,
    release,
    set_aside,
)
from bevkd2.engine.schedule import count_training_samples, resolve_solver
from bevkd2.engine.solver import build_lr_schedule, build_optimizer
from bevkd2.engine.stop import StopOnSignal, StopSignals
from bevkd2.engine.tensorboard import HyperParameters, hyper_parameters, pictures_hook
from bevkd2.engine.trainer import DistillTrainer

_logger = logging.getLogger(__name__)
_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

EvaluateFunction = Callable[..., Mapping[str, Any]]
BuildLoader = Callable[..., Iterable[list[dict[str, Any]]]]


def train(
    cfg: CfgNode,
    model: nn.Module,
    *,
    resume: bool = False,
    build_loader: BuildLoader = build_train_loader,
    evaluate: EvaluateFunction = evaluate,
    extra_hooks: Sequence[HookBase] = (),
) -> Mapping[str, Any]:
    """Trains a model by its config, and compares the last scores with TEST.EXPECTED_RESULTS.

    Args:
        cfg: the config.
        model: as ``build_model`` returns it.
        resume: continue from the last checkpoint in OUTPUT_DIR, where there is one.
        build_loader: called as ``build_loader(cfg, start_iter=...)``; returns endless batches.
        evaluate: called as ``evaluate(cfg, model)``; scores a model, not in DistributedDataParallel. With
            DISTILL.TEACHER.EVALUATE the teacher's call has ``folder`` too, see :func:`evaluate`.
        extra_hooks: run before those that the config's HOOKS names; see :func:`build_hooks` for the order.

    Returns:
        The scores of the last evaluation.
    """
    trainer = build_trainer(
        cfg, model, resume=resume, build_loader=build_loader, evaluate=evaluate, extra_hooks=extra_hooks
    )
    return run_training(cfg, trainer)


def run_training(cfg: CfgNode, trainer: DistillTrainer) -> Mapping[str, Any]:
    """Trains from ``trainer.start_iter`` to the end, and compares the scores with TEST.EXPECTED_RESULTS.

    Before the first step it writes the config to OUTPUT_DIR.

    Args:
        cfg: the config that ``trainer`` was built with.
        trainer: as :func:`build_trainer` returns it.

    Returns:
        The scores of the last evaluation.
    """
    write_config(cfg)
    if trainer.start_iter >= trainer.max_iter:
        _logger.warning(
            "nothing to train: the checkpoint has done %d iterations, and SOLVER.MAX_ITER is %d; the model "
            "is only evaluated",
            trainer.start_iter,
            trainer.max_iter,
        )
    try:
        trainer.train(trainer.start_iter, max(trainer.start_iter, trainer.max_iter))
    finally:
        release(output_folder(cfg))
    if comm.is_main_process():
        verify_results(cfg, trainer.latest_results)
    return trainer.latest_results


def build_trainer(
    cfg: CfgNode,
    model: nn.Module,
    *,
    resume: bool = False,
    build_loader: BuildLoader = build_train_loader,
    evaluate: EvaluateFunction = evaluate,
    extra_hooks: Sequence[HookBase] = (),
) -> DistillTrainer:
    """Builds optimizer, trainer and hooks, and loads MODEL.WEIGHTS or the last checkpoint.

    The folder is this process's until the training ends, see :func:`bevkd2.engine.run_folder.claim`. A
    training that starts anew moves the files of an earlier one in OUTPUT_DIR into a folder there; one that
    is resumed logs what has changed in its config.

    Args:
        cfg, model, resume, build_loader, evaluate, extra_hooks: see :func:`train`.

    Returns:
        A trainer whose ``start_iter`` and ``max_iter`` say what it has to do.

    Raises:
        OSError: the output folder cannot be made or written.
        ValueError: a period, rate or name in SOLVER or TEST that cannot be, no output folder or one in which
            another process trains, frozen stages of the backbone with random weights, a checkpoint of another
            optimizer, or a damaged config.yaml of the training that is resumed.
    """
    given, cfg = cfg, resolve_solver(cfg)
    folder = output_folder(cfg)
    if comm.is_main_process():
        claim(make_output_folder(cfg))
    _check_numbers(cfg)
    _prepare_caches(cfg, model)
    prepare_model(cfg, model)
    trainer = DistillTrainer(
        create_ddp_model(model),
        lambda start_iter: build_loader(cfg, start_iter=start_iter),
        build_optimizer(cfg, model),
        amp_dtype=_amp_dtype(cfg),
        max_grad_norm=cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
        if cfg.SOLVER.CLIP_GRADIENTS.ENABLED
        else float("inf"),
        grad_norm_type=cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE,
        seed=max(cfg.SEED, 0),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    checkpointer = Checkpointer(
        model,
        cfg.OUTPUT_DIR,
        allow_missing=cfg.MODEL.ALLOW_MISSING,
        classes=stored_classes(cfg),
        fixed_classes=fixed_classes(cfg),
        trainer=trainer,
    )
    resuming = resume and checkpointer.has_checkpoint()
    _refuse_frozen_noise(cfg, resuming)
    if not resuming:
        # First: MODEL.WEIGHTS may be among the files that are set aside.
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        comm.synchronize()
        if comm.is_main_process():
            set_aside(folder)
    # It starts from the weights that were loaded.
    average = AverageWeights(checkpointer.model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
    if average is not None:
        checkpointer.save_average(average.model)
    trainer.register_hooks(build_hooks(cfg, model, trainer, checkpointer, evaluate, extra_hooks, average))
    trainer.max_iter = cfg.SOLVER.MAX_ITER
    if resuming:
        if comm.is_main_process():
            log_changed_settings(given, folder / "config.yaml")
        checkpointer.load_last()
        trainer.start_iter = trainer.iter + 1  # the checkpoint names the iteration that was done last
        _restore_best(trainer, folder / "model_best.pth")
        _count_earlier_checkpoints(trainer, folder)
    _log_model(model)
    return trainer


def build_hooks(
    cfg: CfgNode,
    model: nn.Module,
    trainer: DistillTrainer,
    checkpointer: Checkpointer,
    evaluate: EvaluateFunction,
    extra_hooks: Sequence[HookBase] = (),
    average: AverageWeights | None = None,
) -> list[HookBase | None]:
    """Builds the hooks in the order in which they must run.

    Timers, the learning rate, the average of the weights, verification of inherited weights, the teacher's
    evaluation, checkpoints, the end on a signal, the evaluation, the best checkpoint, pictures; then
    ``extra_hooks`` and those of the config's HOOKS, which so see the scores of this iteration; then the
    hyper-parameters and the writers, which so write what these hooks log.

    Args:
        cfg: the config.
        model: the model, not in DistributedDataParallel.
        trainer: the trainer that they are for.
        checkpointer: saves model and trainer.
        evaluate, extra_hooks: see :func:`train`.
        average: of the weights, which is evaluated and saved; None: the weights are.

    Raises:
        KeyError: HOOKS names a hook that is not registered.
        ValueError: a setting in TEST.TENSORBOARD that cannot be.
    """
    save_period, eval_period = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD
    keep = cfg.SOLVER.CHECKPOINTS_TO_KEEP or None
    best = Checkpointer(model, cfg.OUTPUT_DIR, tag_last=False, classes=stored_classes(cfg), trainer=trainer)
    if average is not None:
        best.save_average(average.model)
    evaluated = model if average is None else average.model
    compiles = cfg.SOLVER.COMPILE.MODEL or cfg.SOLVER.COMPILE.TEACHER
    main = comm.is_main_process()
    pictures, parameters = pictures_hook(cfg, evaluated), hyper_parameters(cfg)
    writers = _writers(cfg) if main else []
    stop = StopOnSignal(trainer.stop_signals, checkpointer, save_period)
    return [
        MetricsHistory(writers),
        IterationTimer(),
        PeakMemory(next(model.parameters()).device, cfg.TEST.PRINT_PERIOD),
        CountGraphs() if compiles else None,
        LRScheduler(trainer.optimizer, build_lr_schedule(cfg)),
        average,
        VerifyInherited(model, (save_period, eval_period)) if isinstance(model, InheritsWeights) else None,
        _teacher_hook(cfg, model, trainer.stop_signals, evaluate),
        WarnOfUnreached(model) if isinstance(model, LooksForUnreached) else None,
        # Saving comes before evaluating, so that a model whose evaluation fails can be inspected.
        PeriodicCheckpointer(checkpointer, save_period, max_to_keep=keep) if main else None,
        stop,
        Evaluate(eval_period, stop.interruptible(lambda: evaluate(cfg, evaluated))),
        BestCheckpointer(eval_period, best, cfg.TEST.BEST_METRIC) if main else None,
        pictures,
        *extra_hooks,
        *(HOOK_REGISTRY.get(name)(cfg, model) for name in cfg.HOOKS),
        HyperParameters(parameters, writers) if main else None,
        PeriodicWriter(writers, period=cfg.TEST.PRINT_PERIOD) if main else None,
        ProgressBar() if main and sys.stdout.isatty() else None,
    ]


def create_ddp_model(model: nn.Module) -> nn.Module:
    """Wraps a model in DistributedDataParallel where there are several processes.

    Every trainable parameter must take part in every step's losses, also on samples without boxes.

    Args:
        model: on the device where it is trained; with one process it is returned itself.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )


def _prepare_caches(cfg: CfgNode, model: nn.Module) -> None:
    """Checks that what a teacher says of a sample can be kept, and tells the caches how many samples come.

    Raises:
        ValueError: samples are augmented at random; the settings are named.
    """
    if not isinstance(model, Distiller) or not model.caches:
        return
    random = data_format(cfg).random_settings(cfg)
    if cfg.DISTILL.SHARE_AUGMENTATION:
        random += model.student.random_settings()
    if random:
        raise ValueError(
            f"DISTILL.TEACHER.CACHE keeps the teacher's outputs for a sample, but {', '.join(random)} "
            "changes samples from one epoch to the next; switch that off, or leave the key empty"
        )
    for cache in model.caches:
        cache.num_samples = count_training_samples(cfg)


def _check_numbers(cfg: CfgNode) -> None:
    if not cfg.SOLVER.MAX_ITER:
        raise ValueError(
            "SOLVER.MAX_ITER and SOLVER.EPOCHS are both 0; set one: iterations, or passes over the data"
        )
    for section, key, least in (
        ("SOLVER", "MAX_ITER", 1),
        ("SOLVER", "ACCUMULATION_STEPS", 1),
        ("SOLVER", "CHECKPOINT_PERIOD", 1),
        ("SOLVER", "CHECKPOINTS_TO_KEEP", 0),
        ("SOLVER", "WARMUP_ITERS", 0),
        ("SOLVER", "BACKBONE_MULTIPLIER", 0),
        ("SOLVER", "WEIGHT_DECAY", 0),
        ("TEST", "PRINT_PERIOD", 1),
        ("TEST", "EVAL_PERIOD", 0),
    ):
        if not cfg[section][key] >= least:  # "not >=" also refuses NaN
            raise ValueError(f"{section}.{key}: {cfg[section][key]} is too small; expected at least {least}")
    batch, parts, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS, comm.get_world_size()
    if batch % (parts * processes):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, expected a multiple of {parts * processes}: {processes} "
            f"processes, and {parts} parts of each one's samples (SOLVER.ACCUMULATION_STEPS)"
        )
    if not 0 <= cfg.SOLVER.EMA.DECAY < 1:
        raise ValueError(
            f"SOLVER.EMA.DECAY: {cfg.SOLVER.EMA.DECAY}, expected at least 0 (no average) and below 1"
        )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    for name, value in (("BASE_LR", cfg.SOLVER.BASE_LR), ("CLIP_GRADIENTS.CLIP_VALUE", clip.CLIP_VALUE)):
        if not value > 0:
            raise ValueError(f"SOLVER.{name}: {value} is not positive; expected a number above 0")


def _count_earlier_checkpoints(trainer: DistillTrainer, folder: Path) -> None:
    """Counts periodic checkpoints before the interruption among CHECKPOINTS_TO_KEEP, so that old ones go."""
    paths = sorted(folder.glob(PERIODIC_FILES))
    for hook in trainer._hooks:
        if isinstance(hook, PeriodicCheckpointer):  # later ones will be saved, and counted, again
            hook.recent_checkpoints = [str(p) for p in paths if int(p.stem[6:]) < trainer.start_iter]


def _restore_best(trainer: DistillTrainer, path: Path) -> None:
    """Restores the best score of all, so that a resumed training replaces it only by a better one.

    A periodic checkpoint is saved before its iteration is evaluated, so the best score in it may be older
    than model_best.
    """
    best = [hook for hook in trainer._hooks if isinstance(hook, BestCheckpointer)]
    if not best or not path.is_file():
        return
    try:
        state = load_file(path).get("trainer", {}).get("hooks", {}).get("BestCheckpointer")
    except CheckpointFileError as error:
        _logger.warning("%s. Its score is unknown: the next evaluation replaces it", error)
        return
    if state is None:  # Detectron2's own hook keeps none
        _logger.warning("%s does not say its score: the next evaluation replaces it", path)
    else:
        best[0].load_state_dict(state)


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    name = cfg.SOLVER.AMP.DTYPE
    if name not in _AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE: {name!r} is unknown; expected one of {', '.join(_AMP_DTYPES)}")
    return _AMP_DTYPES[name] if cfg.SOLVER.AMP.ENABLED else None


def _teacher_hook(
    cfg: CfgNode, model: nn.Module, signals: StopSignals, evaluate: EvaluateFunction
) -> HookBase | None:
    if not is_distillation(cfg) or not cfg.DISTILL.TEACHER.EVALUATE:
        return None

    def score() -> Mapping[str, Any]:
        with signals.raised():  # nothing is trained yet, so there is nothing to save
            return evaluate(teacher_config(cfg), model.teacher, folder="inference/teacher")

    return EvaluateTeacher(score)


def _writers(cfg: CfgNode) -> list[EventWriter]:
    folder = make_output_folder(cfg)
    return [
        CommonMetricPrinter(cfg.SOLVER.MAX_ITER),
        MetricsWriter(folder / "metrics.json"),
        TensorboardXWriter(cfg.OUTPUT_DIR),
    ]


def _refuse_frozen_noise(cfg: CfgNode, resuming: bool) -> None:
    """Raises ValueError where frozen stages of the image backbone would keep their random initial weights."""
    backbone = cfg.MODEL.BACKBONE
    if backbone.FREEZE_AT > 0 and not (resuming or cfg.MODEL.WEIGHTS or backbone.WEIGHTS):
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {backbone.FREEZE_AT}, so {backbone.FREEZE_AT} stages of the "
            "backbone are never trained, and they have random weights: name pretrained weights in "
            "MODEL.BACKBONE.WEIGHTS (a file, torchvision://NAME, timm://NAME) or a checkpoint in "
            "MODEL.WEIGHTS, or set FREEZE_AT to 0"
        )


def _log_model(model: nn.Module) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    _logger.info("%s: %d parameters are trained, %d are frozen", type(model).__name__, trained, frozen)
