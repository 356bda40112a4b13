import numpy as np

from bevkd2.visualization import class_palette
from bevkd2.visualization.depth_area_view import draw_depth_area


def entry(low, cars, people, area):
    return {"low": low, "high": low + 3, "per_class": {"car": cars, "person": people}, "area": area}


def test_bars_have_the_colors_of_the_classes_and_an_empty_bin_has_no_area():
    bins = [entry(0, 0, 0, None), entry(3, 10, 2, 9000.0), entry(6, 5, 0, 300.0)]
    picture = draw_depth_area({"bins": bins}, "title").astype(int)
    assert picture.shape == (420, 800, 3)
    car, person = (0.75 * color + 0.25 * 255 for color in class_palette(2).astype(float))
    cars, people = ((abs(picture - color) < 4).all(axis=-1) for color in (car, person))
    assert cars.sum() > 4 * people.sum() > 400
    columns = np.flatnonzero(cars[:360].any(axis=0))
    assert columns.min() > 250  # the first of three bins has no bar
