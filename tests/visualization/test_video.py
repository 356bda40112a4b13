"""Videos are read back: frames, size, rate and colours."""

import sys

import numpy as np
import pytest

from bevkd2.visualization.video import write_video


def colored(height, width, color, count):
    for i in range(count):
        picture = np.full((height, width, 3), 255, dtype=np.uint8)
        picture[10:30, 10 + 4 * i : 30 + 4 * i] = color
        yield picture


def decoded(path):
    av = pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], stream.average_rate


def test_frames_size_rate_and_colors_are_those_written(tmp_path):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    path = tmp_path / "new" / "scene.mp4"
    assert write_video(path, colored(60, 80, (230, 30, 30), 7), 2.5) == 7
    frames, rate = decoded(path)
    assert len(frames) == 7 and frames[0].shape == (60, 80, 3) and rate == pytest.approx(2.5)
    for i, frame in enumerate(frames):
        box = frame[14:26, 14 + 4 * i : 26 + 4 * i].reshape(-1, 3).mean(axis=0)
        assert abs(box - (230, 30, 30)).max() < 20
        assert frame[45:].min() > 235
    assert [file.name for file in path.parent.iterdir()] == ["scene.mp4"]


def test_other_sizes_are_fitted_to_the_first(tmp_path):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    pictures = [np.full(size, 90, np.uint8) for size in ((61, 81, 3), (40, 50, 3), (122, 162, 3))]
    assert write_video(tmp_path / "a.mp4", pictures, 2) == 3
    frames, _ = decoded(tmp_path / "a.mp4")
    assert {frame.shape for frame in frames} == {(62, 82, 3)}
    assert abs(frames[1][20, 20].astype(int) - 90).max() < 8 and frames[1][55, 70].min() > 240
    assert abs(frames[2][55, 70].astype(int) - 90).max() < 8


@pytest.mark.parametrize(
    ("name", "count", "rate", "message"),
    [("a.avi", 1, 2, "expected '.mp4'"), ("a.mp4", 0, 2, "no picture"), ("a.mp4", 1, 0, "above 0")],
)
def test_what_cannot_be_written_is_an_error(tmp_path, name, count, rate, message):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, colored(20, 20, (0, 0, 0), count), rate)
    assert not list(tmp_path.iterdir())


def test_without_pyav_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match='pip install "av>=14"'):
        write_video(tmp_path / "a.mp4", colored(20, 20, (0, 0, 0), 1), 2)
