"""A small call of every op: the table of tests/ops/test_odd_use.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bevkd2 import ops

SHAPES = [(3, 4), (2, 2)]  # of the levels of deformable attention
PIXELS = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One op, and what it is called with.

    Attributes:
        call: takes the tensors by name.
        tensors: inputs in float64.
        student: names of the inputs that get a gradient.
        empty: sizes that may be zero: for each, the tensors' dimensions that have it.
    """

    call: Callable[..., Any]
    tensors: dict[str, Tensor]
    student: tuple[str, ...] = ()
    empty: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Returns the tensors, floating ones in a dtype."""
        return {
            k: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) for k, v in self.tensors.items()
        }

    def run(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Returns the tensors that the op returns."""
        return list(flattened(self.call(**tensors)))

    def run_with_gradients(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Returns the outputs and the gradients of the students, for upstream gradients of one."""
        leaves = {k: v.detach().requires_grad_() if k in self.student else v for k, v in tensors.items()}
        outputs = self.run(leaves)
        roots = [out for out in outputs if out.requires_grad]
        wanted = [leaves[name] for name in self.student]
        grads = torch.autograd.grad(roots, wanted, [torch.ones_like(r) for r in roots]) if roots else ()
        return [*(out.detach() for out in outputs), *grads]


def flattened(result: Any) -> Iterator[Tensor]:
    """Yields the tensors of a result."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, ops.PixelWeights):
        yield from (result.maps, result.sums, result.cells)
    else:
        for item in result:
            yield from flattened(item) if item is not None else ()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_cases() -> dict[str, Case]:
    """Returns the three forms of deformable attention; D = 5 is no multiple of any vector's length."""
    value, weights, offsets = randn(2, PIXELS, 3, 5), rand(2, 4, 3, 2, 2), randn(2, 4, 3, 2, 2, 2, seed=1)
    splits, rows = torch.tensor([0, 1, 1, 3, 4]), torch.tensor([0, 1, 0, 1])
    all_dims = {
        "batch": {"value": 0, "sampling_locations": 0, "attention_weights": 0},
        "queries": {"sampling_locations": 1, "attention_weights": 1},
        "heads": {"value": 2, "sampling_locations": 2, "attention_weights": 2},
        "channels": {"value": 3},
        "points": {"sampling_locations": 4, "attention_weights": 4},
    }
    renamed = {"sampling_locations": "sampling_offsets", "attention_weights": "attention_logits"}
    fused = {size: {renamed.get(k, k): d for k, d in dims.items()} for size, dims in all_dims.items()}
    fused["batch"]["reference_points"], fused["queries"]["reference_points"] = 0, 1
    ragged = {
        size: {k: d - (k != "value") for k, d in fused[size].items()}
        for size in ("heads", "channels", "points")
    }
    return {
        "ms_deform_attn": Case(
            lambda **t: ops.ms_deform_attn(spatial_shapes=SHAPES, level_start_index=None, **t),
            {"value": value, "sampling_locations": rand(2, 4, 3, 2, 2, 2), "attention_weights": weights},
            ("value", "sampling_locations", "attention_weights"),
            all_dims,
        ),
        "ms_deform_attn_fused": Case(
            lambda **t: ops.ms_deform_attn_fused(spatial_shapes=SHAPES, return_weights=True, **t),
            {
                "value": value,
                "reference_points": rand(2, 4, 2, 2),
                "sampling_offsets": offsets,
                "attention_logits": weights,
            },
            ("value", "reference_points", "sampling_offsets", "attention_logits"),
            fused,
        ),
        "ms_deform_attn_ragged": Case(
            lambda **t: ops.ms_deform_attn_ragged(
                spatial_shapes=SHAPES,
                row_splits=splits.to(t["value"].device),
                row_value=rows.to(t["value"].device),
                **t,
            ),
            {
                "value": value,
                "reference_points": rand(4, 2, 2),
                "sampling_offsets": offsets[0],
                "attention_logits": weights[0],
            },
            ("value", "reference_points", "sampling_offsets", "attention_logits"),
            ragged,
        ),
    }


def pair_case(call: Callable[..., Any], *shape: int, sizes: dict[str, int], **more: Tensor) -> Case:
    """Returns a loss of student and teacher of one shape; ``sizes`` are the dimensions that may be zero."""
    tensors = {"student": randn(*shape), "teacher": randn(*shape, seed=1), **more}
    empty = {size: {"student": dim, "teacher": dim} for size, dim in sizes.items()}
    return Case(call, tensors, ("student",), empty)


def loss_cases() -> dict[str, Case]:
    """Returns the losses."""
    maps, sizes = (2, 5, 3, 4), {"batch": 0, "channels": 1, "rows": 2}
    logits, of_logits = (2, 6, 3), {"batch": 0, "queries": 1, "classes": 2}
    objects = torch.tensor([[True, False, True, False, False, True]] * 2)
    return {
        "feature_l2": pair_case(ops.feature_l2, *maps, sizes=sizes),
        "masked_l2": pair_case(lambda **t: ops.masked_l2(**t, reduction="norm"), *maps, sizes=sizes),
        "attention_l2": pair_case(
            lambda **t: ops.attention_l2(**t, reduction="cell"),
            *(2, 4, 3, 2, 2),
            sizes={"batch": 0, "queries": 1, "heads": 2, "points": 4},
        ),
        "weighted_l2": pair_case(
            lambda student, teacher: ops.weighted_l2(
                [student], [teacher], student.new_ones(1, len(student), dtype=arithmetic(student))
            ),
            *maps,
            sizes=sizes,
        ),
        "weighted_l2_with_means": pair_case(
            lambda student, teacher: ops.weighted_l2_with_means(
                student, teacher, student.new_ones(len(student), dtype=arithmetic(student))
            ),
            *maps,
            sizes={"batch": 0},  # the means of nothing are NaN, as torch's
        ),
        "bev_response_l2": pair_case(
            lambda **t: ops.bev_response_l2(**t, reduction="norm"), *maps, sizes={"batch": 0, "rows": 2}
        ),
        "normalized_l2": pair_case(ops.normalized_l2, *maps, sizes={"channels": 1}),
        "channel_wise_kl": pair_case(ops.channel_wise_kl, *maps, sizes=sizes),
        "pixel_wise_kl": pair_case(ops.pixel_wise_kl, *maps, sizes=sizes),
        "absolute_means": Case(
            ops.absolute_means, {"features": randn(*maps)}, ("features",), {"batch": {"features": 0}}
        ),
        "logit_distance": pair_case(
            lambda **t: ops.logit_distance(**t, distance="softmax_kl"), *logits, sizes=of_logits
        ),
        "prediction_loss": pair_case(
            lambda student, teacher: ops.prediction_loss(
                student, teacher, objects[:1, :1].to(student.device).expand(student.shape[:2]), distance="kl"
            ),
            *logits,
            sizes=of_logits,
        ),
        "class_distance": pair_case(
            lambda **t: ops.class_distance(**t, distance="kl"), *logits, sizes=of_logits
        ),
        "depth_guidance": Case(
            lambda student, teacher, true: ops.depth_guidance(
                student, teacher, true, torch.full((), 60.0, device=student.device)
            ),
            {"student": 50 * rand(2, 6), "teacher": 50 * rand(2, 6, seed=1), "true": 50 * rand(2, 6, seed=2)},
            ("student",),
            {
                "batch": {"student": 0, "teacher": 0, "true": 0},
                "queries": {"student": 1, "teacher": 1, "true": 1},
            },
        ),
    }


def arithmetic(student: Tensor) -> torch.dtype:
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def box_cases() -> dict[str, Case]:
    """Returns the overlaps, the suppression and what is drawn from boxes; none has a gradient."""
    flat, solid = 4 * rand(5, 5) + 0.5, 4 * rand(4, 7) + 0.5
    sizes, splits = torch.tensor([[24.0, 40.0], [20.0, 30.0]]).double(), torch.tensor([0, 2, 5])
    pairs = {"first": {"a": 0}, "second": {"b": 0}}
    return {
        "rotated_intersection": Case(ops.rotated_intersection, {"a": flat, "b": flat + 0.3}, empty=pairs),
        "rotated_iou": Case(ops.rotated_iou, {"a": flat, "b": flat + 0.3}, empty=pairs),
        "box3d_iou": Case(ops.box3d_iou, {"a": solid, "b": solid + 0.3}, empty=pairs),
        "rotated_nms": Case(
            lambda **t: ops.rotated_nms(**t, iou_threshold=0.1),
            {"boxes": flat, "scores": rand(5)},
            empty={"boxes": {"boxes": 0, "scores": 0}},
        ),
        "batched_rotated_nms": Case(
            lambda **t: ops.batched_rotated_nms(**t, iou_threshold=0.1),
            {"boxes": flat, "scores": rand(5), "labels": torch.tensor([0, 1, 0, 1, 1])},
            empty={"boxes": {"boxes": 0, "scores": 0, "labels": 0}},
        ),
        "draw_weights": Case(
            lambda image_sizes, boxes: ops.draw_weights(
                [(3, 5), (2, 3)],
                strides=[8, 16],
                image_sizes=image_sizes,
                perspective=ops.Perspective(),
                boxes=[ops.BoxMask(boxes, splits.to(boxes.device))],
            ),
            {"image_sizes": sizes, "boxes": 10 * flat},
        ),
        "content_mask": Case(
            lambda image_sizes: ops.content_mask(image_sizes, (3, 5), 8),
            {"image_sizes": sizes},
            empty={"batch": {"image_sizes": 0}},
        ),
        "perspective_matrix": Case(
            lambda image_sizes: ops.perspective_matrix(
                image_sizes, (3, 5), 8, amplitude=0.3, sigma=(0.7, 0.7), center=(0.5, 0.5)
            ),
            {"image_sizes": sizes},
            empty={"batch": {"image_sizes": 0}},
        ),
        "occlusion_factor": Case(
            lambda boxes, depths: ops.occlusion_factor([boxes], [depths], (3, 5), 8, 30.0),
            {"boxes": 5 * flat[:, :4].sort(1).values, "depths": 60 * rand(5)},
            empty={"boxes": {"boxes": 0, "depths": 0}},
        ),
    }


CASES = {**attention_cases(), **loss_cases(), **box_cases()}
NOT_CASES = {"export_onnx", "onnx_decompositions", "pack_boxes"}  # no kernels
