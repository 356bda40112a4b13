import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.data.synthetic.backdrop import NEAR, clip_near, project

SQUARE = np.array([[-1.0, 0, -1], [1, 0, -1], [1, 0, 3], [-1, 0, 3]])


def test_a_polygon_before_the_camera_is_kept():
    polygon = SQUARE + np.array([0.0, 0.0, 2.0])
    assert clip_near(polygon) is polygon


def test_a_polygon_across_the_plane_is_cut_at_it():
    clipped = clip_near(SQUARE)
    np.testing.assert_allclose(sorted(clipped[:, 2]), [NEAR, NEAR, 3, 3])
    np.testing.assert_allclose(sorted(clipped[:, 0]), [-1, -1, 1, 1])


@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=3, max_size=3))
def test_clipped_polygons_are_beyond_the_near_plane(points):
    polygon = np.array(points)
    if polygon[:, 2].max() > NEAR:
        clipped = clip_near(polygon)
        assert len(clipped) >= 3 or (polygon[:, 2] >= NEAR).sum() == 1
        assert clipped[:, 2].min() >= NEAR - 1e-9


def test_projection():
    intrinsics = np.array([[100.0, 0, 50], [0, 200, 30], [0, 0, 1]])
    np.testing.assert_allclose(project(np.array([[1.0, -0.5, 2]]), intrinsics), [[100, -20]])
