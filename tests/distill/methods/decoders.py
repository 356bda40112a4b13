"""Two small detectors with object queries, and hand-made knowledge of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.modeling.bev.box_coder import encode_boxes
from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.structures import Boxes3D
from tests.distill.methods.harness import build_detector, method_node

CELLS, WIDTH, CLASSES = (6, 8), 16, 10


def detectors(student_width: int = WIDTH, *options: Any) -> tuple[Any, Any]:
    """A student and a teacher whose untrained classes are as probable as not."""
    models = build_detector("BEVFormer", student_width, 1, *options), build_detector("BEVFormer", WIDTH, 2)
    for model in models:
        for branch in model.decoder.class_branches:
            nn.init.zeros_(branch[-1].bias)
        model.eval()
    models[1].requires_grad_(False)
    return models


def knowledge_of(detector: Any, seed: int, samples: int = 2) -> BEVKnowledge:
    """What a detector knows of a random bird's-eye view; ``bev_embed`` is a leaf with gradient."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(samples, CELLS[0] * CELLS[1], detector.neck.out_channels, generator=generator)
    known = BEVKnowledge(
        bev_embed=cells.requires_grad_(), bev_shape=CELLS, object_queries=detector.object_queries
    )
    return decoded(detector, known)


def decoded(detector: Any, known: BEVKnowledge) -> BEVKnowledge:
    """The knowledge with its decoder's fields filled."""
    output = detector.decode(known, detector.object_queries)
    known.class_logits, known.box_codes = output.class_logits, output.box_codes
    known.decoder_states, known.decoder_reference_points = output.states, output.reference_points
    return known


def attached(name: str, student: Any, teacher: Any, **settings: Any) -> Any:
    """A method on two detectors."""
    method = DISTILL_REGISTRY.get(name)(
        method_node(name, **settings), student.feature_shapes(), teacher.feature_shapes()
    )
    method.attach(student, teacher)
    return method


def targets_of(*counts: int) -> BEVTargets:
    """Objects without yaw, as many as ``counts`` says per sample."""
    generator = torch.Generator().manual_seed(7)
    boxes, labels = [], []
    for count in counts:
        rows = torch.rand(count, 9, generator=generator) * 2 + 2
        rows[:, :2] = torch.rand(count, 2, generator=generator) * 60 - 30
        rows[:, 6] = 0
        boxes.append(Boxes3D(rows))
        labels.append(torch.randint(0, CLASSES, (count,), generator=generator))
    return BEVTargets(
        boxes=boxes,
        labels=labels,
        codes=[encode_boxes(of_sample) for of_sample in boxes],
        lidar2img=torch.eye(4).expand(len(counts), 6, 4, 4),
        image_sizes=torch.full((len(counts), 6, 2), 32.0),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of all losses of a method."""
    return torch.stack(list(losses.values())).sum()
