"""Exports a model with random weights, and compares the file with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.export import export_detector
from bevkd2.export.model import OPSET
from bevkd2.modeling import Detector
from bevkd2.ops.onnx_export import MODULE_KEY
from bevkd2.runtime import Graph

BOX_BOUND = 1e-3
"""Metres, radians and m/s, as docs/deployment.md promises."""
SCORE_BOUND = 1e-4


def exported(cfg: CfgNode, size: tuple[int, int], *paths: Path) -> Detector[Any, Any, Any]:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    export_detector(cfg, model, list(paths), image_size=size)
    return model


def assert_graph_equals_the_form(path: Path, model: Detector[Any, Any, Any], inputs: Any) -> None:
    import onnx

    written = onnx.load(path)
    assert {node.domain for node in written.graph.node} == {""} and not written.functions
    assert {entry.key for node in written.graph.node for entry in node.metadata_props} == {MODULE_KEY}
    assert [(opset.domain, opset.version) for opset in written.opset_import] == [("", OPSET)]
    graph = Graph(path)
    form = model.deployable(tuple(graph.description["inputs"][0]["shape"][-2:])).eval()
    with torch.no_grad():
        expected = form(*inputs)
    names = [port.name for port in form.inputs]
    outputs = graph.run({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    wanted = {port.name: tensor for port, tensor in zip(form.outputs, expected, strict=True)}
    found = {name: torch.from_numpy(output) for name, output in outputs.items()}
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0.0, atol=SCORE_BOUND)
    off = (found["scores"] - wanted["scores"]).abs().max().item()
    rows = in_a_certain_order(wanted["scores"], 2 * off)
    assert rows.float().mean() > 0.2
    for name in wanted.keys() - {"boxes", "scores", "bev"}:
        torch.testing.assert_close(found[name][rows], wanted[name][rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["boxes"][rows], wanted["boxes"][rows], rtol=0.0, atol=BOX_BOUND)
    if "bev" in wanted:
        torch.testing.assert_close(found["bev"], wanted["bev"], rtol=1e-4, atol=1e-4)


def in_a_certain_order(scores: torch.Tensor, slack: float = 0.0) -> torch.Tensor:
    """Which rows (B, M) rounding cannot exchange: the scores before and after differ by more than it."""
    if scores.ndim == 3:  # of all classes, in the order of the locations
        return torch.ones(scores.shape[:2], dtype=torch.bool)
    apart = -scores.diff(dim=1) > max(slack, 1e-6)
    edge = torch.ones(len(scores), 1, dtype=torch.bool)
    return torch.cat([edge, apart], dim=1) & torch.cat([apart, edge], dim=1)


def with_past(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """A multi-view form's inputs with a past in every second sample: another pose and a BEV of noise."""
    images, lidar2img, can_bus, previous_can_bus, previous_bev, has_previous = inputs
    can_bus = can_bus.clone()
    can_bus[:, 0], can_bus[:, 16], can_bus[:, 17] = 2.0, 0.3, 17.0
    has_previous = torch.arange(len(has_previous)) % 2 == 0
    return [images, lidar2img, can_bus, previous_can_bus, torch.randn_like(previous_bev), has_previous]
