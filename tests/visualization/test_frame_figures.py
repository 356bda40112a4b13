import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.structures import CAMERA_NAMES, Boxes3D
from bevkd2.visualization import DrawnObjects, ModelView, choose_frames, frame_figures
from bevkd2.visualization.canvas import with_title
from bevkd2.visualization.frame_figures import attention_figure
from bevkd2.visualization.model_view import SpatialAttentionView

NAMES = ("forklift", "pallet", "worker")
HEADS, LEVELS, POINTS = 2, 1, 4


def objects(*centers, scores=None, label=0):
    boxes = Boxes3D(torch.tensor([[x, y, 0, 4, 2, 1.5, 0, 0, 0] for x, y in centers], dtype=torch.float64))
    return DrawnObjects(boxes, np.full(len(centers), label), scores)


def make_view(detections):
    cells = 16
    attention = SpatialAttentionView(
        seen=np.ones((6, cells), dtype=bool),
        entropy=np.arange(cells, dtype=float),
        reference_points=np.full((6, cells, 2, 2), 0.5),
        offsets=np.zeros((cells, HEADS, LEVELS, POINTS, 2)),
        weights=np.full((cells, HEADS, LEVELS, POINTS), 1 / 4),
        spatial_shapes=[(4, 11)],
        padded_size=(64, 176),
    )
    return ModelView(
        detections=detections,
        extent=(-32.0, -32.0, 32.0, 32.0),
        shape=(4, 4),
        response=np.arange(cells, dtype=float).reshape(4, 4),
        attention=attention,
    )


IMAGES = {name: np.full((64, 176, 3), 90, dtype=np.uint8) for name in CAMERA_NAMES}
SURE = objects((10.0, 10.0), scores=np.array([0.9]))


def attention(view, truth, threshold=0.3):
    return attention_figure(view, IMAGES, truth, class_names=NAMES, scale=2.0, score_threshold=threshold)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 40))
def test_chosen_frames_are_spread_over_the_scenes(lengths, num):
    starts = np.cumsum([0, *lengths])
    scenes = [range(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    chosen = choose_frames(scenes, num)
    flat = [frame for frames in chosen for frame in frames]
    assert len(flat) == len(set(flat)) == min(num, sum(lengths))
    assert all(set(frames) <= set(scene) for frames, scene in zip(chosen, scenes, strict=True))
    # The last frame of a scene has the longest past.
    assert all(frames[-1] == scene[-1] for frames, scene in zip(chosen, scenes, strict=True) if frames)
    counts = [len(frames) for frames in chosen]
    if num >= len(lengths):
        assert min(counts) >= 1


def test_attention_is_drawn_for_the_nearest_object():
    near, far = objects((5.0, 5.0)), objects((20.0, -20.0))
    both = objects((20.0, -20.0), (5.0, 5.0))
    pictures = [attention(make_view(SURE), truth) for truth in (near, far, both)]
    title = slice(0, 36)
    assert (pictures[0][title] == pictures[2][title]).all()
    assert (pictures[0][title] != pictures[1][title]).any()


@pytest.mark.parametrize("label", [0, 2])
def test_title_of_the_attention_figure_names_the_class(label):
    picture = attention(make_view(SURE), objects((5.0, 5.0), label=label))
    title = f"points sampled by the BEV cell at (5.0, 5.0) m: {NAMES[label]}"
    expected = with_title(np.zeros_like(picture), title)[:36, : picture.shape[1]]
    assert (picture[:36] == expected).all()


def test_detections_are_used_without_annotations():
    nothing = DrawnObjects(Boxes3D.empty(), np.zeros(0, dtype=np.int64))
    assert attention(make_view(SURE), nothing) is not None
    assert attention(make_view(SURE), nothing, 0.95) is None


def test_no_attention_figure_for_objects_outside_the_grid():
    assert attention(make_view(SURE), objects((100.0, 0.0))) is None


def test_no_attention_figure_for_a_model_without_attention():
    view = dataclasses.replace(make_view(SURE), attention=None)
    assert attention(view, objects((5.0, 5.0))) is None


@pytest.mark.parametrize("annotated", [True, False])
def test_every_model_gets_its_pictures(annotated):
    sample = {
        "sample_id": "abc",
        "images": torch.full((6, 3, 64, 176), 90, dtype=torch.uint8),
        "lidar2img": torch.eye(4).expand(6, 4, 4),
    }
    if annotated:
        sample |= {"boxes": SURE.boxes, "labels": torch.tensor([0])}
    views = {"teacher": make_view(SURE), "student": make_view(SURE)}
    views["student"] = dataclasses.replace(views["student"], features=[{16: np.ones((4, 11))}] * 6)
    pictures = frame_figures(sample, views, CAMERA_NAMES, NAMES)
    assert set(pictures) == {
        "bev_response",
        "features",
        *(f"{kind}_{name}" for kind in ("detections", "attention") for name in views),
    }
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())
