"""Pictures of what a model sees: cameras, the view from above, attention, BEV response."""

from bevkd2.visualization.attention import (
    attention_entropy,
    draw_cell_attention,
    record_sampling_offsets,
    sampling_pixels,
)
from bevkd2.visualization.bev_response import bev_response, draw_bev_responses, draw_cells
from bevkd2.visualization.bev_view import BEVFrame, draw_bev
from bevkd2.visualization.camera_view import draw_boxes, mosaic, project_edges
from bevkd2.visualization.canvas import save_image
from bevkd2.visualization.figure import camera_images, detection_figure
from bevkd2.visualization.frame_figures import choose_frames, frame_figures
from bevkd2.visualization.model_view import ModelStream, ModelView
from bevkd2.visualization.objects import CLASS_COLORS, Objects

__all__ = [
    "CLASS_COLORS",
    "BEVFrame",
    "ModelStream",
    "ModelView",
    "Objects",
    "attention_entropy",
    "bev_response",
    "camera_images",
    "choose_frames",
    "detection_figure",
    "draw_bev",
    "draw_bev_responses",
    "draw_boxes",
    "draw_cell_attention",
    "draw_cells",
    "frame_figures",
    "mosaic",
    "project_edges",
    "record_sampling_offsets",
    "sampling_pixels",
    "save_image",
]
