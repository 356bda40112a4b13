import json

import pytest

from bevkd2.data.synthetic import WorldConfig


def test_presets_increase_in_difficulty():
    easy, medium, hard = (WorldConfig.preset(name) for name in WorldConfig.presets)
    assert easy.hue_sigma < medium.hue_sigma < hard.hue_sigma
    assert easy.objects_per_scene < medium.objects_per_scene < hard.objects_per_scene
    assert easy == WorldConfig()


def test_overrides_replace_values_of_the_preset():
    assert WorldConfig.preset("hard", hue_sigma=0.5).hue_sigma == 0.5


def test_unknown_difficulty_is_named():
    with pytest.raises(ValueError, match="'brutal', expected one of easy, medium, hard"):
        WorldConfig.preset("brutal")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames_per_scene", 1),
        ("image_size", (8, 64)),
        ("hue_sigma", float("nan")),
        ("jpeg_quality", 101),
        ("seed", -1),
        ("version", "a/b"),
    ],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"WorldConfig.{field} is"):
        WorldConfig(**{field: value})


def test_no_scene_is_an_error():
    with pytest.raises(ValueError, match="both 0"):
        WorldConfig(num_train_scenes=0, num_val_scenes=0)


def test_splits_cover_every_scene_once():
    config = WorldConfig(num_train_scenes=3, num_val_scenes=2)
    splits = config.splits()
    assert splits["synthetic_train"] + splits["synthetic_val"] == [config.scene_name(i) for i in range(5)]


def test_json_round_trip_is_stable():
    marker = WorldConfig().to_json()
    assert json.loads(json.dumps(marker)) == marker
