"""The ops' reference implementations in plain PyTorch, which tests/ops/references owns."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.ops.references import (
    bev_response_l2_reference,
    box3d_iou_reference,
    draw_weights_reference,
    masked_l2_reference,
    rotated_intersection_reference,
    rotated_iou_reference,
    rotated_nms_reference,
    sampling_locations_reference,
)

__all__ = [
    "bev_response_l2_reference",
    "box3d_iou_reference",
    "draw_weights_reference",
    "masked_l2_reference",
    "rotated_intersection_reference",
    "rotated_iou_reference",
    "rotated_nms_reference",
    "sampling_locations_reference",
]
