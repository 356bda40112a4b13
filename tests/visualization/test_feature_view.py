import numpy as np
import pytest

from bevkd2.visualization import draw_feature_maps, feature_response
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
