"""What SOLVER changes in a model for its training alone: memory layout, compilation, normalisation."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from bevkd2.d2 import HookBase, comm
from bevkd2.distill import Distiller

_logger = logging.getLogger(__name__)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare_model(cfg: CfgNode, model: nn.Module) -> None:
    """Applies SOLVER.SYNC_BN, SOLVER.CHANNELS_LAST and SOLVER.COMPILE; keys of state dicts stay.

    Args:
        cfg: the config.
        model: as ``build_model`` returns it, not in DistributedDataParallel; changed in place.

    Raises:
        ValueError: SYNC_BN on the CPU, or without a layer to synchronise; an unknown BACKEND.
    """
    solver, student = cfg.SOLVER, model.student if isinstance(model, Distiller) else model
    if solver.SYNC_BN:
        _synchronise_batch_norms(student)
    if solver.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)  # teachers too
    detectors = [student] if solver.COMPILE.MODEL else []
    if solver.COMPILE.TEACHER and isinstance(model, Distiller):
        detectors += model.teachers
    for detector in detectors:
        _compile_parts(detector, solver.COMPILE.BACKEND)


def _compile_parts(detector: nn.Module, backend: str) -> None:
    """Compiles the modules of a detector in place: what is between them handles samples, not tensors."""
    if backend not in (known := torch.compiler.list_backends(None)):
        raise ValueError(
            f"SOLVER.COMPILE.BACKEND: {backend!r} is unknown; expected one of {', '.join(known)}"
        )
    for part in detector.children():
        if any(True for _ in part.parameters()):
            part.compile(backend=backend)


def _synchronise_batch_norms(student: nn.Module) -> None:
    """Replaces batch normalisations by ``nn.SyncBatchNorm``, but those that use running statistics."""
    found = [
        (parent, name)
        for parent in student.train().modules()
        for name, child in parent.named_children()
        if type(child) in _BATCH_NORMS and child.training
    ]
    if not found:
        raise ValueError(
            "SOLVER.SYNC_BN is True, but no layer of the model computes statistics of a batch; set it to "
            "False, or MODEL.BACKBONE.NORM to BN"
        )
    if next(student.parameters()).device.type == "cpu" and comm.get_world_size() > 1:
        raise ValueError(
            "SOLVER.SYNC_BN is True, but torch synchronises batch normalisation on GPUs only, and "
            "MODEL.DEVICE is cpu; set SOLVER.SYNC_BN False"
        )
    for parent, name in found:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(getattr(parent, name)))
    _logger.info("SOLVER.SYNC_BN: %d layers are synchronised", len(found))


class CountGraphs(HookBase):
    """Logs how many graphs torch.compile made, and where it could not go on (graph breaks)."""

    def before_train(self) -> None:
        """Starts to count."""
        torch._dynamo.utils.counters.clear()

    def after_step(self) -> None:
        """Logs the counts of the first iteration, which compiles most."""
        if self.trainer.iter == self.trainer.start_iter:
            self._log()

    def after_train(self) -> None:
        """Logs the counts of the whole training."""
        self._log()

    def _log(self) -> None:
        counters: Any = torch._dynamo.utils.counters
        breaks = counters["graph_break"]
        reasons = "; ".join(f"{count} x {reason.splitlines()[0]}" for reason, count in breaks.most_common(3))
        _logger.info(
            "torch.compile after iteration %d: %d graphs, %d graph breaks%s",
            min(self.trainer.iter, self.trainer.max_iter - 1),
            counters["stats"]["unique_graphs"],
            sum(breaks.values()),
            f" ({reasons})" if reasons else "",
        )
