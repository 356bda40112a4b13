"""WeightAverage: a training hook of its own, which averages the student's weights over the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import HookBase, comm
from bevkd2.engine import HOOK_REGISTRY


@add_config_extension
def add_weight_average_config(cfg: CfgNode) -> None:
    """Adds the hook's own key."""
    cfg.WEIGHT_AVERAGE = CfgNode({"DECAY": 0.999})


@HOOK_REGISTRY.register()
class WeightAverage(HookBase):
    """Keeps the exponential moving average of the weights and writes it as model_average.pth.

    The average is updated in ``before_step``: checkpoints are saved before a plugin's ``after_step`` runs.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.decay, self.path = cfg.WEIGHT_AVERAGE.DECAY, Path(cfg.OUTPUT_DIR) / "model_average.pth"
        self.model = getattr(model, "student", model)
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Averages the weights that the last step left."""
        for name, value in self.model.state_dict().items():
            before = self.average.setdefault(name, value.clone()).to(value.device)
            averaged = before.lerp(value, 1 - self.decay) if value.is_floating_point() else value.clone()
            self.average[name] = averaged

    def after_train(self) -> None:
        """Writes the average, unless the training failed."""
        if self.trainer.iter == self.trainer.max_iter and comm.is_main_process():
            self.before_step()
            save_file({"model": self.average}, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of this hook."""
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.average = state["average"]
