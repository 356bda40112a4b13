"""Graphs that run a deployable form in PyTorch: what the runtime does, without an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.config import CfgNode
from bevkd2.export import describe
from bevkd2.modeling import Detector


class TorchGraph:
    """Has what the runtime reads of a ``bevkd2.runtime.Graph``."""

    path = Path("in memory")

    def __init__(self, cfg: CfgNode, model: Detector[Any, Any, Any], image_size: tuple[int, int]) -> None:
        self.form = model.deployable(image_size).eval()
        self.description = describe(cfg, self.form, model)
        self.image_size = tuple(self.form.inputs[0].shape[-2:])

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for port in self.form.inputs:
            assert feeds[port.name].shape[1:] == port.shape, port.name
            assert torch.from_numpy(feeds[port.name]).dtype == port.dtype, port.name
        with torch.no_grad():
            outputs = self.form(*(torch.from_numpy(feeds[port.name]) for port in self.form.inputs))
        named = dict(zip((port.name for port in self.form.outputs), outputs, strict=True))
        for port in self.form.outputs:
            assert named[port.name].shape[1:] == port.shape and named[port.name].dtype == port.dtype, (
                port.name
            )
        return {name: output.numpy() for name, output in named.items()}
