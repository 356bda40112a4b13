import dataclasses

import numpy as np
import pytest

from bevkd2.data.synthetic import WorldConfig
from bevkd2.data.synthetic.nuscenes.scene import make_scene
from bevkd2.data.synthetic.textures import PANORAMA_SHAPE, face_textures, noise_tile, panorama

SCENE = make_scene(WorldConfig(objects_per_scene=10), 0)


@pytest.mark.parametrize("index", range(10))
def test_the_front_is_brighter_than_the_back(index):
    light = dataclasses.replace(SCENE.light, ambient=1.0)
    faces = face_textures(SCENE.objects[index], light, np.random.default_rng(0))
    assert faces.shape == (5, 16, 16, 3)
    assert np.percentile(faces[0].min(axis=-1), 90) > np.percentile(faces[1].min(axis=-1), 50) + 20


def test_the_face_towards_the_sun_is_brighter():
    item = dataclasses.replace(SCENE.objects[-1], yaw=0.0)
    bright = {}
    for name, sun in {"left": [0, 0.8, 0.6], "right": [0, -0.8, 0.6]}.items():
        light = dataclasses.replace(SCENE.light, sun=np.array(sun), ambient=0.5)
        faces = face_textures(item, light, np.random.default_rng(0))
        bright[name] = faces[2].mean() / faces[3].mean()
    assert bright["left"] > 1.2
    assert bright["right"] < 1 / 1.2


def test_distractors_are_grey():
    faces = face_textures(SCENE.objects[-1], SCENE.light, np.random.default_rng(0))
    assert (faces.max(axis=-1) - faces.min(axis=-1)).max() < 40


def test_noise_is_periodic():
    tile = noise_tile(np.random.default_rng(0))
    inner = np.abs(np.diff(tile, axis=1)).max()
    assert np.abs(tile[:, 0] - tile[:, -1]).max() <= inner * 1.01
    assert abs(float(tile.mean())) < 0.2


def test_the_panorama_has_sky_above_a_skyline():
    image = panorama(SCENE.light, np.random.default_rng(0))
    assert image.shape == (*PANORAMA_SHAPE, 3)
    assert image[0, :, 2].mean() > image[0, :, 0].mean() + 20
    assert image[-1].mean() < image[-16].mean()
