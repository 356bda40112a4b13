import math
from types import SimpleNamespace

import pytest

from bevkd2.data.synthetic.world import check_difficulty, check_image_size, check_ranges


@pytest.mark.parametrize("value", [1.9, 5.1, math.nan])
def test_numbers_have_ranges(value: float):
    check_ranges(SimpleNamespace(share=2.0, count=5), {"share": (2, 5), "count": (2, 5)})
    with pytest.raises(
        ValueError, match=rf"SimpleNamespace\.share is {value}, expected a number from 2 to 5"
    ):
        check_ranges(SimpleNamespace(share=value), {"share": (2, 5)})


@pytest.mark.parametrize("size", [(16,), (16, 16, 16), (15, 16), (16, 4097)])
def test_images_have_two_sides(size: tuple[int, ...]):
    check_image_size(object(), (16, 4096))
    with pytest.raises(ValueError, match=r"object\.image_size is .*16 to 4096 pixels"):
        check_image_size(object(), size)


def test_difficulties_are_presets():
    check_difficulty("easy", {"easy": {}})
    with pytest.raises(ValueError, match="difficulty is 'Easy', expected one of easy, hard"):
        check_difficulty("Easy", ["easy", "hard"])
