from pathlib import Path

import pytest

from bevkd2.kitti.files import find_frames

LABEL = "Car 0.00 0 1.64 500.00 170.00 620.00 250.00 1.53 1.63 3.88 -1.00 1.70 14.00 1.57\n"


def files(folder: Path, *names: str, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("truth", ["", "label_2", "data"])
@pytest.mark.parametrize("det", ["", "label_2", "data"])
def test_folders_are_found(tmp_path: Path, truth: str, det: str):
    labels = files(tmp_path / "gt" / truth, "000000", "000001", text=LABEL)
    found = files(tmp_path / "det" / det, "000001", text=LABEL.replace("\n", " 0.5\n"))
    frames = find_frames(tmp_path / "gt", tmp_path / "det")
    assert (frames.ground_truth_dir, frames.detection_dir) == (labels, found)
    assert frames.names == ("000001",) and frames.left_out == 1
    truths, detections = frames.read()
    assert len(truths) == len(detections) == 1
    assert truths[0].scores is None and detections[0].scores.tolist() == [0.5]


def test_subfolders_come_before_the_folder_itself(tmp_path: Path):
    files(tmp_path, "notes")
    labels = files(tmp_path / "label_2", "000000")
    found = files(tmp_path / "data", "000000")
    frames = find_frames(tmp_path, tmp_path)
    assert (frames.ground_truth_dir, frames.detection_dir) == (labels, found)


def test_a_split_names_the_frames(tmp_path: Path):
    files(tmp_path / "label_2", "000000", "000001", "000002")
    files(tmp_path / "data", "000001", "000002")
    frames = find_frames(tmp_path, tmp_path, ["000002", "000001"])
    assert frames.names == ("000001", "000002") and frames.left_out == 1


@pytest.mark.parametrize(
    ("labels", "found", "split", "error", "message"),
    [
        ("0", "01", None, ValueError, r"detections of 1 frame \(000001\) without a label file"),
        ("0", "01", "0", ValueError, r"detections of 1 frame \(000001\) without a label file"),
        ("01", "01", "0", ValueError, r"detections of 1 frame \(000001\), which the split does not list"),
        (
            "01",
            "0",
            "01",
            FileNotFoundError,
            r"no detection file of 1 .*\(000001\).*write an empty file",
        ),
        ("0", "0", "01", FileNotFoundError, r"no label file of 1 frame \(000001\), which the split lists"),
        ("01234567", "", "01234567", FileNotFoundError, "holds no detection file"),
        ("012345678", "8", "012345678", FileNotFoundError, r"8 frames \(000000, .*000004, \.\.\.\)"),
        ("", "0", None, FileNotFoundError, "holds no label file"),
    ],
)
def test_frames_that_do_not_pair_are_refused(tmp_path: Path, labels, found, split, error, message):
    truth = files(tmp_path / "gt", *(f"{int(c):06d}" for c in labels))
    det = files(tmp_path / "det", *(f"{int(c):06d}" for c in found))
    with pytest.raises(error, match=message):
        find_frames(truth, det, split and [f"{int(c):06d}" for c in split])


def test_a_missing_directory_is_named(tmp_path: Path):
    files(tmp_path, "000000")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a directory; expected one with label files"):
        find_frames(tmp_path / "nowhere", tmp_path)


def test_the_list_of_the_split_is_named(tmp_path):
    for folder in ("gt", "det"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000001.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"of 1 frame \(000002\), which ImageSets/val\.txt lists"):
        find_frames(tmp_path / "gt", tmp_path / "det", ["000001", "000002"], "ImageSets/val.txt")
