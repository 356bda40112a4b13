import torch
from torch import nn

from bevkd2.config import CfgNode
from bevkd2.d2 import HookBase
from bevkd2.engine import HOOK_REGISTRY


@HOOK_REGISTRY.register()
class GradientNorm(HookBase):
    """Writes the norm of the whole gradient before clipping to metrics.json and TensorBoard."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.model = model

    def after_backward(self) -> None:
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        self.trainer.storage.put_scalar("gradient_norm", torch.stack(norms).norm().item())
