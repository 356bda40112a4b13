"""The ONNX composites as torch functions, in all variants, and some of them in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from bevkd2.modeling.bev.attention import SpatialCrossAttention, TemporalSelfAttention
from bevkd2.modeling.bev.geometry import History, VisiblePairs, bev_reference_points, find_visible_pairs
from bevkd2.modeling.bev.layers import LayerOptions
from bevkd2.ops import ms_deform_attn, ms_deform_attn_fused
from bevkd2.ops.onnx_export import export_onnx, onnx_decompositions
from tests.ops.deform_attn_tester import SIZES, Case, DeformAttnTester
from tests.ops.test_ms_deform_attn import TestMSDeformAttn as DropIn
from tests.ops.test_ms_deform_attn_fused import TestMSDeformAttnFused as Fused
from tests.ops.test_ms_deform_attn_ragged import TestMSDeformAttnRagged as Ragged

Arguments = tuple[Tensor, ...]
OPTIONS = LayerOptions(embed_dim=16, num_heads=2, ffn_dim=16, dropout=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [DropIn, Fused, Ragged])
@pytest.mark.parametrize("size", SIZES)
def test_composites_equal_the_ops(form: type[DeformAttnTester], size: str, dtype: torch.dtype) -> None:
    op = getattr(torch.ops.bevkd2, form.raw).default
    for case in form().cases((size,)):
        inputs = form().make(case, torch.float64 if dtype == torch.float64 else torch.float32)
        inputs["value"] = inputs["value"].to(dtype)
        inputs[form.locations][..., ::5, 0] = float("nan")
        inputs[form.locations][..., 1::5, 1] = float("inf")
        arguments = form().raw_arguments(inputs)
        torch.testing.assert_close(onnx_decompositions()[op](*arguments), op(*arguments))


def test_the_composite_of_overlapping_levels_equals_the_op() -> None:
    arguments = list(DropIn().raw_arguments(DropIn().make(SIZES["small"], torch.float64)))
    arguments[2] = [3, 0]
    op = torch.ops.bevkd2.ms_deform_attn.default
    torch.testing.assert_close(onnx_decompositions()[op](*arguments), op(*arguments))


def test_the_composite_of_the_inverse_equals_torch() -> None:
    matrices = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    inverse = onnx_decompositions()[torch.ops.aten.linalg_inv.default]
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))
    with pytest.raises(ValueError, match="has no composite"):
        inverse(torch.eye(4))


class DropInModule(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, [(5, 7), (3, 2)], None, locations, weights)


class BoxModule(nn.Module):
    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Any:
        return ms_deform_attn_fused(value, [(5, 7), (3, 2)], references, offsets, logits, return_weights=True)


class TemporalModule(nn.Module):
    shape = (4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.attention = TemporalSelfAttention(OPTIONS, num_points=4, bev_shape=self.shape)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.1)
        nn.init.normal_(self.attention.attention_weights.weight)

    def forward(self, query: Tensor, position: Tensor, queue: Tensor, references: Tensor) -> Any:
        history, wants = History(queue, [True], references), frozenset({"temporal_attention"})
        output, costly = self.attention(query, position, history, wants)
        return output, costly["temporal_attention"]


class SpatialModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = SpatialCrossAttention(OPTIONS, num_levels=2, num_points=4)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.1)
        nn.init.normal_(self.attention.attention_weights.weight)

    def forward(
        self, query: Tensor, features: Tensor, references: Tensor, splits: Tensor, views: Tensor
    ) -> Any:
        pairs = VisiblePairs(references, splits, views, bev_mask=torch.empty(0))
        return self.attention(query, features, [(4, 6), (2, 3)], pairs)[0]


def drop_in_inputs(size: int) -> Arguments:
    inputs = DropIn().make(Case(batch=size, queries=3 + size), torch.float32)
    inputs["sampling_locations"][0, 0, 0, 0] = float("nan")
    return inputs["value"], inputs["sampling_locations"], inputs["attention_weights"]


def box_inputs(size: int) -> Arguments:
    inputs = Fused().make(Case(batch=size, queries=3 + size, variant="boxes"), torch.float32)
    names = ("value", "reference_points", "sampling_offsets", "attention_logits")
    return tuple(inputs[name] for name in names)


def temporal_inputs(size: int) -> Arguments:
    references = bev_reference_points(TemporalModule.shape, torch.device("cpu")).expand(size, 2, -1, -1)
    return torch.randn(size, 20, 16), torch.randn(20, 16), torch.randn(size, 2, 20, 16), references.clone()


def spatial_inputs(size: int) -> Arguments:
    cameras, cells = 3, 5 * size
    references = torch.rand(size, cameras, cells, 2, 2)
    pairs = find_visible_pairs(references, torch.rand(size, cameras, cells, 2) < 0.4)
    rows = pairs.reference_points, pairs.row_splits, pairs.row_value
    return torch.randn(size, cells, 16), torch.randn(size * cameras, 30, 16), *rows


BATCH, QUERIES = {0: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic_shapes"),
    [
        (DropInModule, drop_in_inputs, (BATCH, QUERIES, QUERIES)),
        (BoxModule, box_inputs, (BATCH, QUERIES, QUERIES, QUERIES)),
        (TemporalModule, temporal_inputs, (BATCH, None, BATCH, BATCH)),
        (SpatialModule, spatial_inputs, (QUERIES, BATCH, BATCH, BATCH, BATCH)),
    ],
)
def test_onnx_runtime_equals_the_op_for_any_batch(
    module: type[nn.Module], inputs: Any, dynamic_shapes: Any, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install bevkd2[export]")
    model = module()
    export_onnx(model, inputs(2), tmp_path / "model.onnx", dynamic_shapes=dynamic_shapes)
    for size in (2, 3):
        arguments = inputs(size)
        expected = model(*arguments)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for actual, output in zip(run_onnx(tmp_path / "model.onnx", arguments), expected, strict=True):
            torch.testing.assert_close(actual, output, rtol=1e-5, atol=1e-5)


def run_onnx(path: Path, arguments: Sequence[Tensor]) -> list[Tensor]:
    """Runs a graph and asserts that it consists of standard operators."""
    import onnx
    import onnxruntime

    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feeds = {name: argument.numpy() for name, argument in zip(names, arguments, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feeds)]
