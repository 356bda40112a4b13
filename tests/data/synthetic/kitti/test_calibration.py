import math

import numpy as np
import pytest

from bevkd2.data.synthetic import KittiWorldConfig
from bevkd2.data.synthetic.kitti.calibration import CAMERA_HEIGHT, make_calibration
from bevkd2.structures import invert_pose


@pytest.fixture
def calibration():
    return make_calibration(np.random.default_rng(0), KittiWorldConfig(focal_sigma=0.0))


def parse(text):
    lines = [line.split(":") for line in text.splitlines() if line]
    return {key: np.array(values.split(), dtype=float) for key, values in lines}


def test_the_text_has_every_matrix_of_kitti(calibration):
    found = parse(calibration.to_text())
    assert list(found) == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]
    assert [len(values) for values in found.values()] == [12, 12, 12, 12, 9, 12, 12]
    np.testing.assert_allclose(found["P2"].reshape(3, 4), calibration.projections[2], rtol=1e-12)
    np.testing.assert_allclose(found["R0_rect"].reshape(3, 3), calibration.rectification, rtol=1e-12)


def test_p2_has_a_translation_of_a_few_centimetres(calibration):
    intrinsics, column = calibration.projections[2, :, :3], calibration.projections[2, :, 3]
    offset = np.linalg.solve(intrinsics, column)
    assert 0.03 < offset[0] < 0.1
    assert (offset[1:] != 0).all()
    assert (calibration.projections[0, :, 3] == 0).all()


@pytest.mark.parametrize("size", [(416, 128), (1242, 375), (320, 96)])
def test_focal_length_and_principal_point_follow_the_image_size(size):
    config = KittiWorldConfig(image_size=size, focal_sigma=0.0)
    matrix = make_calibration(np.random.default_rng(0), config).projections[2]
    assert 2 * math.degrees(math.atan(size[0] / 2 / matrix[0, 0])) == pytest.approx(config.horizontal_fov)
    assert matrix[0, 2] / size[0] == pytest.approx(609.56 / 1242, abs=1e-3)
    assert matrix[1, 2] / size[1] == pytest.approx(172.85 / 375, abs=1e-3)


def test_focal_lengths_vary_as_configured():
    config = KittiWorldConfig(focal_sigma=0.01)
    drawn = [make_calibration(np.random.default_rng(i), config).projections[0, 0, 0] for i in range(300)]
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(0.01, rel=0.2)


def test_p2_and_the_renderers_camera_agree(calibration):
    """From the ground frame by the sensor's pose, or from the camera frame by P2: one pixel."""
    sensor = calibration.camera()
    forward, left, up = 14.0, 2.0, 0.4
    in_sensor = invert_pose(sensor.sensor2ego) @ [forward, left, up, 1.0]
    through_sensor = sensor.intrinsics @ in_sensor[:3]
    through_p2 = calibration.cam2img @ [-left, CAMERA_HEIGHT - up, forward, 1.0]
    np.testing.assert_allclose(through_sensor, through_p2[:3], rtol=1e-12)


def test_the_rectified_lidar_is_level(calibration):
    """x forward, y left, z up of the lidar are z, -x and -y of the camera."""
    rotation = calibration.rectification @ calibration.lidar_to_camera[:, :3]
    np.testing.assert_allclose(rotation, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-12)
    assert abs(calibration.rectification - np.eye(3)).max() > 1e-3
