import numpy as np
import pytest

from bevkd2.kitti.calibration import check_principal_point, read_cam2img

P2 = [721.5, 0.0, 609.6, 44.86, 0.0, 721.5, 172.9, 0.2164, 0.0, 0.0, 1.0, 0.002746]


def row(key, values):
    return f"{key}: {' '.join(f'{value:.12e}' for value in values)}\n"


def write(path, *lines):
    path.write_text("".join(lines))
    return path


def test_reads_p2_among_the_others(tmp_path):
    others = np.arange(12.0)
    path = write(tmp_path / "a.txt", row("P0", others), row("P2", P2), row("P3", others), "\n")
    expected = np.concatenate([np.reshape(P2, (3, 4)), [[0, 0, 0, 1]]])
    np.testing.assert_array_equal(read_cam2img(path), expected)


def test_a_byte_order_mark_is_read(tmp_path):
    path = write(tmp_path / "a.txt", row("P2", P2))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    np.testing.assert_array_equal(read_cam2img(path)[:3], np.reshape(P2, (3, 4)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((row("P0", P2), row("P3", P2)), r"a\.txt has 0 rows P2, expected one \(rows there: P0, P3\)"),
        (("",), r"0 rows P2, expected one \(rows there: none\)"),
        ((row("P2", P2), row("P2", P2)), "has 2 rows P2"),
        ((row("P2", P2[:11]),), "expected 12 finite numbers"),
        ((row("P2", [*P2, 1.0]),), "expected 12 finite numbers"),
        ((row("P2", [*P2[:11], float("nan")]),), "expected 12 finite numbers"),
        ((row("P2", P2).replace("0", "x", 1),), "expected 12 finite numbers"),
        ((row("P2", P2[:11]) + " 1_0",), "expected 12 finite numbers"),
        ((row("P2", P2[:11]) + " \u0661",), "expected 12 finite numbers"),
        ((row("P2", [*P2[:11], 1e300]),), "expected 12 finite numbers"),
        ((row("P2", [-1.0, *P2[1:]]),), "focal lengths above 0"),
        ((row("P2", [*P2[:8], 0.1, *P2[9:]]),), "third row that begins 0 0 1"),
    ],
)
def test_files_that_are_not_calibrations_are_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_cam2img(write(tmp_path / "a.txt", *lines))


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(row("P2", P2), encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.txt is in UTF-16 .*expected ASCII or UTF-8"):
        read_cam2img(tmp_path / "a.txt")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.txt does not exist; unpack"):
        read_cam2img(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((375, 1242), True),
        ((370, 1224), True),
        ((231, 813), True),  # the point is at 0.7498 of the height and of the width
        ((230, 813), False),
        ((231, 812), False),
        ((188, 621), False),  # half the size without its calibration
        ((750, 2484), False),  # twice
        ((1242, 375), False),
    ],
)
def test_principal_point_must_be_near_the_middle(size, fits):
    cam2img = np.concatenate([np.reshape(P2, (3, 4)), [[0, 0, 0, 1]]])
    if fits:
        check_principal_point("calib.txt", cam2img, "image.png", size)
        return
    with pytest.raises(
        ValueError, match=r"image\.png is .* \(609\.6, 172\.9\), expected within the middle half"
    ):
        check_principal_point("calib.txt", cam2img, "image.png", size)
