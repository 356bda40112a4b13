import json

import pytest

from bevkd2.data.synthetic import KittiWorldConfig


def test_presets_increase_in_difficulty():
    easy, medium, hard = (KittiWorldConfig.preset(name) for name in KittiWorldConfig.presets)
    for field in ("max_objects", "distractors", "hue_sigma", "size_sigma", "overlap"):
        assert getattr(easy, field) < getattr(medium, field) < getattr(hard, field)
    assert easy == KittiWorldConfig()


def test_overrides_replace_values_of_the_preset():
    assert KittiWorldConfig.preset("hard", size_sigma=0.01).size_sigma == 0.01


def test_unknown_difficulty_is_named():
    with pytest.raises(ValueError, match="'brutal', expected one of easy, medium, hard"):
        KittiWorldConfig.preset("brutal")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_objects", 9),  # more than max_objects
        ("nearest", 30.0),  # beyond the farthest
        ("image_size", (8, 64)),
        ("size_sigma", float("nan")),
        ("horizontal_fov", 180.0),
        ("seed", -1),
    ],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"KittiWorldConfig.{field} is"):
        KittiWorldConfig(**{field: value})


def test_no_frame_is_an_error():
    with pytest.raises(ValueError, match="both 0"):
        KittiWorldConfig(num_train_frames=0, num_val_frames=0)


def test_splits_cover_every_frame_once():
    splits = KittiWorldConfig(num_train_frames=3, num_val_frames=2).splits()
    assert splits == {"train": ["000000", "000001", "000002"], "val": ["000003", "000004"]}


def test_json_round_trip_is_stable():
    marker = KittiWorldConfig().to_json()
    assert json.loads(json.dumps(marker)) == marker
