import math

import numpy as np
import pytest

from bevkd2.kitti.ap import Curve, DistanceBin, KittiScores
from bevkd2.visualization import CLASS_COLORS, draw_ap_by_distance, scores_by_distance

TEACHER, STUDENT = {"0-20 m": 60.0, ">= 20 m": 20.0}, {"0-20 m": 30.0, ">= 20 m": math.nan}


def bars(picture, color):
    """Pixels of a colour by column, the legend left out."""
    mask = np.abs(picture[:-45].astype(int) - color).max(axis=-1) < 4
    return mask.sum(axis=0)


def test_heights_are_in_proportion():
    picture = draw_ap_by_distance({"teacher": TEACHER, "student": STUDENT}, "car")
    blue, orange = bars(picture, CLASS_COLORS[6]), bars(picture, CLASS_COLORS[1])
    heights = sorted({int(h) for h in blue if h > 5})
    assert heights[-1] / heights[0] == pytest.approx(3, rel=0.05)
    assert blue.max() / orange.max() == pytest.approx(2, rel=0.05)


def test_unknown_scores_have_no_bar():
    picture = draw_ap_by_distance({"teacher": TEACHER, "student": STUDENT}, "car")
    columns = np.nonzero(bars(picture, CLASS_COLORS[1]) > 5)[0]
    assert columns.max() < picture.shape[1] / 2


@pytest.mark.parametrize(
    "scores",
    [{}, {"a": {}}, {"a": TEACHER, "b": {"0-20 m": 1.0}}, {str(i): TEACHER for i in range(6)}],
)
def test_distances_must_agree_and_colors_suffice(scores):
    with pytest.raises(ValueError, match="distances by model are"):
        draw_ap_by_distance(scores, "car")


def curve(n_gt, precision):
    none = np.zeros(0, dtype=np.int64)
    return Curve(n_gt, 0.7, np.zeros(0), none, none, none, np.zeros(0), np.full(41, precision), None, None)


def test_bins_are_named_and_undefined_scores_are_nan():
    bins = [
        DistanceBin(0, 20, KittiScores(1, {"car/3d/moderate": curve(3, 0.25)}, ())),
        DistanceBin(20, 40, KittiScores(1, {"car/3d/moderate": curve(0, 0.0)}, ())),
        DistanceBin(40, math.inf, KittiScores(1, {}, ("car/3d/moderate",))),
    ]
    scores = scores_by_distance(bins)
    assert list(scores) == ["0-20 m", "20-40 m", ">= 40 m"]
    assert scores["0-20 m"] == 25
    assert math.isnan(scores["20-40 m"])
    assert math.isnan(scores[">= 40 m"])
