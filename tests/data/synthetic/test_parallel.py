import operator

import cv2
import numpy as np
import pytest

from bevkd2.data.synthetic.parallel import check_workers, map_indices, write_image


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert map_indices(operator.neg, 7, workers, "number", progress=False) == [0, -1, -2, -3, -4, -5, -6]


def test_no_workers_is_an_error():
    check_workers(1)
    with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
        check_workers(0)


def test_an_image_is_written_as_rgb(tmp_path):
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 0], image[2, 3, 1] = 200, 90
    write_image(tmp_path / "new" / "image.png", image, [])
    found = cv2.imread(str(tmp_path / "new" / "image.png"))
    np.testing.assert_array_equal(found[..., ::-1], image)
