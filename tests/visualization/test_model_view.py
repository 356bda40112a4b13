import dataclasses

import numpy as np
import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.data import build_test_loader
from bevkd2.visualization import ModelStream


@pytest.fixture(scope="module")
def cfg(student_config_file, world_options):
    return load_config(str(student_config_file), world_options)


@pytest.fixture(scope="module")
def frames(cfg):
    return [batch[0] for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0])]


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).eval()


def test_a_view_holds_what_the_model_computes(model, frames):
    view = ModelStream(model).see(frames[0])
    with torch.no_grad():
        inputs = model.preprocess([frames[0]])
        knowledge = model.extract(inputs, frozenset({"spatial_attention"}))
        expected = model.inference(knowledge, inputs)[0]
    height, width = model.bev_shape
    response = knowledge.bev_embed[0].abs().mean(dim=1).reshape(height, width)
    np.testing.assert_allclose(view.response, response.numpy(), atol=1e-5)
    np.testing.assert_allclose(view.attention.weights, knowledge.spatial_attention[-1][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(view.detections.scores, expected["scores"].numpy(), atol=1e-6)
    seen = knowledge.seen_by_any_camera()[0].reshape(height, width).numpy()
    assert (np.isnan(view.attention.entropy.reshape(height, width)) == ~seen).all()
    assert view.attention.reference_points.shape[:2] == (6, height * width)
    assert view.attention.offsets.shape == (*view.attention.weights.shape, 2)


def test_features_are_those_of_every_camera_and_level(model, frames):
    view = ModelStream(model).see(frames[0])
    with torch.no_grad():
        knowledge = model.extract(model.preprocess([frames[0]]), frozenset({"fpn"}))
    assert len(view.features) == 6
    for levels in view.features:
        assert list(levels) == knowledge.fpn_strides and len(levels) == len(knowledge.fpn)
    for stride, level in zip(knowledge.fpn_strides, knowledge.fpn, strict=True):
        responses = np.stack([levels[stride] for levels in view.features])
        np.testing.assert_allclose(responses, level.abs().mean(dim=1).numpy(), atol=1e-5)


def test_temporal_attention_is_that_of_the_last_layer_and_says_whether_there_was_a_past(model, frames):
    stream = ModelStream(model)
    views = [stream.see(frame) for frame in frames[:4]]
    assert [view.temporal.has_history for view in views] == [False, True, True, False]  # another scene
    with torch.no_grad():
        inputs = model.preprocess([frames[0]])
        knowledge = model.extract(inputs, frozenset({"temporal_attention", "temporal_offsets"}))
    expected = knowledge.temporal_attention[-1][0, :, :, :, 0].numpy()
    np.testing.assert_allclose(views[0].temporal.weights, expected, atol=1e-6)
    np.testing.assert_allclose(views[0].temporal.weights.sum(axis=-1), 1, atol=1e-5)
    assert views[0].temporal.offsets.shape == (*expected.shape, 2)


def test_state_is_reset_at_a_new_scene(model, frames):
    stream = ModelStream(model)
    streamed = [stream.see(frame).response for frame in frames[:4]]
    fresh = [ModelStream(model).see(frame).response for frame in frames[:4]]
    assert np.abs(streamed[1] - fresh[1]).max() > 1e-4
    # The fourth frame begins another scene.
    np.testing.assert_allclose(streamed[3], fresh[3], atol=1e-6)


def test_cells_are_numbered_row_by_row_from_the_least_x_and_y(model, frames):
    view = ModelStream(model).see(frames[0])
    height, width = view.response.shape
    x0, y0, x1, y1 = view.extent
    assert view.cell_at(x0, y0) == 0
    assert view.cell_at(x1 - 1e-3, y0) == width - 1
    assert view.cell_at(x0, y1 - 1e-3) == (height - 1) * width
    assert view.cell_at(x1, y0) is None
    oblong = dataclasses.replace(view, shape=(2, 3), extent=(0.0, 0.0, 6.0, 4.0))
    assert [oblong.cell_at(5.0, 1.0), oblong.cell_at(1.0, 3.0)] == [2, 3]


def test_pillar_points_surround_the_object_in_the_image(model, frames):
    """The projected pillar of a cell surrounds the object in the cell."""
    view = ModelStream(model).see(frames[0])
    boxes = frames[0]["boxes"]
    near = int(boxes.center[:, :2].norm(dim=1).argmin())
    x, y, z = boxes.center[near].tolist()
    cell = view.cell_at(x, y)
    camera = int(np.flatnonzero(view.attention.seen[:, cell])[0])
    point = frames[0]["lidar2img"][camera] @ torch.tensor([x, y, z, 1.0])
    u = float(point[0] / point[2])
    pillar = view.attention.reference_points[camera, cell, :, 0] * view.attention.padded_size[1]
    # A cell of 2 m at the object's distance spans so many pixels to either side.
    tolerance = 2.0 * float(frames[0]["lidar2img"][camera][:3, :3].norm(dim=1)[0]) / float(point[2])
    assert np.abs(pillar - u).min() < tolerance
