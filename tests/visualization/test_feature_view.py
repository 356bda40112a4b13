import numpy as np
import pytest
import torch

from bevkd2.structures import CAMERA_NAMES, Boxes3D
from bevkd2.visualization import DrawnObjects, draw_camera_features, draw_feature_maps, feature_response
from bevkd2.visualization.feature_view import shared_scales

IMAGE = np.full((32, 96, 3), 50, dtype=np.uint8)


def test_response_is_the_mean_absolute_value_over_channels():
    features = np.array([[[1.0, -2.0]], [[-3.0, 0.0]]])
    np.testing.assert_allclose(feature_response(features), [[2.0, 1.0]])


def test_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\), expected \(C, h, w\)"):
        feature_response(np.zeros((1, 2, 3, 4)))


def test_all_models_share_the_scale_of_a_level():
    weak, strong = np.linspace(0, 1, 48).reshape(4, 12), np.linspace(0, 5, 48).reshape(4, 12)
    scales = shared_scales({"a": {8: weak, 16: weak[:2, :6]}, "b": {8: strong}}, (32, 96))
    assert scales[8] == tuple(np.percentile([*weak.ravel(), *strong.ravel()], [1, 99.5]))
    assert scales[16] == tuple(np.percentile(weak[:2, :6], [1, 99.5]))
    assert list(scales) == [8, 16]


def test_padding_does_not_count_for_the_scale():
    cells = np.ones((4, 16))
    cells[:, 12:] = 1000
    assert shared_scales({"a": {8: cells}}, (32, 96)) == {8: (1.0, 1.0)}


def test_stronger_features_are_brighter_in_the_same_column():
    rng = np.random.default_rng(0)
    cells = rng.random((4, 12))
    picture = draw_feature_maps(IMAGE, {"weak": {8: cells}, "strong": {8: 4 * cells}}, tile_width=96)
    weak, strong = picture[35 + 22 : 67], picture[70 + 22 : 102]  # below the names
    assert strong.mean() > weak.mean() + 20
    alone = draw_feature_maps(IMAGE, {"weak": {8: cells}}, tile_width=96)[35 + 22 : 67]
    assert (alone != weak).any()


def test_no_model_is_an_error():
    with pytest.raises(ValueError, match="expected at least one level"):
        draw_feature_maps(IMAGE, {})


CAMERAS = dict.fromkeys(CAMERA_NAMES, IMAGE)
CAMERA = np.array([[48.0, 0, 48, 0], [0, 48, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # looks along z


def tiles(picture, model):
    """The tiles of a model's finest level by camera, below their names: columns are 800 pixels wide."""
    width = (800 - 4) // 3
    height, band = round(32 * width / 96), 20
    top = (model + 1) * (band + 2 * height + 2 + 3) + band
    rows = [
        ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
        ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
    ]
    return {
        name: picture[top + row * (height + 2) :, column * (width + 2) :][30:height, :width]
        for row, names in enumerate(rows)
        for column, name in enumerate(names)
    }


def test_cameras_stand_in_their_order_and_share_the_scale_of_a_level():
    weak = {name: {8: np.full((4, 12), 0.1 * i)} for i, name in enumerate(CAMERA_NAMES)}
    strong = {name: {8: np.full((4, 12), 1.0)} for name in CAMERA_NAMES}
    lidar2img = dict.fromkeys(CAMERA_NAMES, CAMERA)
    picture = draw_camera_features(CAMERAS, {"weak": weak, "strong": strong}, lidar2img)
    first, second = ({name: tile.mean() for name, tile in tiles(picture, i).items()} for i in (0, 1))
    assert [first[name] for name in CAMERA_NAMES] == sorted(first.values())
    assert len(set(first.values())) == 6 and len(set(second.values())) == 1
    assert second["CAM_FRONT"] > max(first.values())


def test_objects_are_outlined_in_their_camera_and_a_missing_level_is_white():
    box = DrawnObjects(Boxes3D(torch.tensor([[0.0, 0, 6, 2, 2, 2, 0, 0, 0]])), np.zeros(1, dtype=np.int64))
    levels = {name: {8: np.zeros((4, 12)), 16: np.zeros((2, 6))} for name in CAMERA_NAMES}
    coarse = {name: {16: np.zeros((2, 6))} for name in CAMERA_NAMES}
    behind = np.diag([1.0, 1.0, -1.0, 1.0])
    lidar2img = {name: CAMERA if name == "CAM_FRONT" else behind for name in CAMERA_NAMES}
    picture = draw_camera_features(CAMERAS, {"both": levels, "coarse": coarse}, lidar2img, box)
    white = {name: int((tile > 200).all(axis=-1).sum()) for name, tile in tiles(picture, 0).items()}
    assert white.pop("CAM_FRONT") > 50 and set(white.values()) == {0}
    assert all((tile == 255).all() for tile in tiles(picture, 1).values())


def test_models_without_a_level_are_an_error():
    with pytest.raises(ValueError, match="models a have no FPN level"):
        draw_camera_features(CAMERAS, {"a": {}}, dict.fromkeys(CAMERA_NAMES, CAMERA))
