"""The runtime's motion of the ego equals that of the data set's mapper, but for what a stream cannot know."""

import numpy as np

from bevkd2.data.nuscenes.ego_motion import can_bus_vectors, motion_from_poses
from bevkd2.runtime import EgoMotion
from bevkd2.structures import pose_matrix


def test_vectors_equal_the_mappers() -> None:
    rng = np.random.default_rng(0)
    rotations = rng.normal(size=(6, 4))
    rotations[:3] = [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]  # no turn, and half turns
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    rotations *= np.where(rotations[:, :1] < 0, -1, 1)
    translations = rng.uniform(-5, 5, (6, 3)) + np.array([600, 1600, 0])
    times = 10**15 + np.cumsum([500_000, 400_000, 600_000, 500_000, 500_000, 450_000])
    expected = can_bus_vectors(translations, rotations, motion_from_poses(translations, rotations, times))
    expected[0, 7:16] = 0  # the mapper takes the second frame's, which a stream does not have yet
    expected[1, 7:10] = 0
    stream = EgoMotion()
    for frame in range(6):
        vector = stream.vector(pose_matrix(translations[frame], rotations[frame]), int(times[frame]))
        np.testing.assert_allclose(vector, expected[frame], atol=1e-6)


def test_measured_motion_is_taken_as_it_is() -> None:
    stream, motion = EgoMotion(), np.arange(9.0)
    stream.vector(np.eye(4), 0)
    np.testing.assert_array_equal(stream.vector(np.eye(4), 1_000_000, motion)[7:16], motion)
