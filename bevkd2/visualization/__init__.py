"""Pictures of samples, detections and knowledge: cameras, bird's-eye view, attention, BEV response, FPN."""

from bevkd2.visualization.ap_view import draw_ap_by_distance, scores_by_distance
from bevkd2.visualization.attention import (
    attention_entropy,
    draw_cell_attention,
    sampling_pixels,
)
from bevkd2.visualization.bev_response import bev_response, draw_bev_responses, draw_cells
from bevkd2.visualization.bev_view import BEVFrame, draw_bev
from bevkd2.visualization.camera_view import draw_boxes, mosaic, project_edges
from bevkd2.visualization.canvas import save_image
from bevkd2.visualization.feature_view import draw_camera_features, draw_feature_maps, feature_response
from bevkd2.visualization.figure import camera_images, detection_figure
from bevkd2.visualization.found_view import draw_found, found_objects
from bevkd2.visualization.frame_figures import choose_frames, frame_figures
from bevkd2.visualization.model_view import ModelStream, ModelView
from bevkd2.visualization.mono_figure import mono_figure
from bevkd2.visualization.mono_model_view import MonoView, mono_figures, see_image
from bevkd2.visualization.mono_view import draw_mono_bev, draw_mono_image, fitting_extent, upright2img
from bevkd2.visualization.objects import CLASS_COLORS, DrawnObjects, class_palette
from bevkd2.visualization.perspective_view import draw_perspective, perspective_maps

__all__ = [
    "CLASS_COLORS",
    "BEVFrame",
    "DrawnObjects",
    "ModelStream",
    "ModelView",
    "MonoView",
    "attention_entropy",
    "bev_response",
    "camera_images",
    "choose_frames",
    "class_palette",
    "detection_figure",
    "draw_ap_by_distance",
    "draw_bev",
    "draw_bev_responses",
    "draw_boxes",
    "draw_camera_features",
    "draw_cell_attention",
    "draw_cells",
    "draw_feature_maps",
    "draw_found",
    "draw_mono_bev",
    "draw_mono_image",
    "draw_perspective",
    "feature_response",
    "fitting_extent",
    "found_objects",
    "frame_figures",
    "mono_figure",
    "mono_figures",
    "mosaic",
    "perspective_maps",
    "project_edges",
    "sampling_pixels",
    "save_image",
    "scores_by_distance",
    "see_image",
    "upright2img",
]
