import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bevkd2.data import kitti
from bevkd2.data.kitti import load_kitti
from bevkd2.kitti.labels import read_labels
from bevkd2.structures import projected_boxes2d
from tests.data.kitti_fixture import IMAGE_SIZE, TRAIN

CLASSES = ("Pedestrian", "Cyclist", "Car")
FRAME = TRAIN[0]
CAR = "Car 0.00 0 0.00 10.00 20.00 30.00 40.00 1.50 1.60 3.90 1.00 1.60 {z} 0.30"


@pytest.fixture
def world(kitti_world, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(kitti_world, tmp_path / "world"))


def label_file(root, frame=FRAME):
    return root / "training" / "label_2" / f"{frame}.txt"


def test_an_index_holds_what_the_files_say(kitti_world):
    index = load_kitti(kitti_world, "train", CLASSES)
    assert len(index) == len(TRAIN)
    records = [index.record(i) for i in range(len(index))]
    assert [record.image_id for record in records] == TRAIN
    assert index.groups() == [range(i, i + 1) for i in range(len(TRAIN))]
    for i, record in enumerate(records):
        assert (record.height, record.width) == index.image_size(i) == IMAGE_SIZE
        assert Path(record.file_name).is_file() and record.attributes is None
        objects = read_labels(label_file(kitti_world, record.image_id))
        objects = objects[np.isin(objects.types, CLASSES)]
        assert [CLASSES[label] for label in record.labels] == objects.types.tolist()
        np.testing.assert_allclose(record.boxes.bottom_center, objects.location, atol=1e-5)
        np.testing.assert_allclose(record.boxes.size, objects.sizes[:, [2, 1, 0]], atol=1e-6)
        np.testing.assert_allclose(record.boxes.rotation_y, objects.rotation_y, atol=1e-6)
        np.testing.assert_allclose(record.boxes2d, objects.boxes2d, atol=1e-4)
    focal = {record.cam2img[0, 0] for record in records}
    assert len(focal) == len(TRAIN), "every frame has its own calibration"
    assert sum(len(record.labels) for record in records) == len(index.labels) > 0


def test_records_are_copies(kitti_world):
    index = load_kitti(kitti_world, "train", CLASSES)
    i = int(np.diff(index.box_starts).argmax())
    record = index.record(i)
    before = record.boxes.tensor.clone(), record.cam2img.copy()
    record.boxes.tensor[:] = 0
    record.boxes2d[:] = 0
    record.labels[:] = 7
    record.cam2img[:] = 0
    again = index.record(i)
    assert torch.equal(again.boxes.tensor, before[0]) and np.array_equal(again.cam2img, before[1])
    assert again.boxes2d.any() and (again.labels < 3).all()


def test_classes_choose_and_number_the_objects(kitti_world):
    vans = load_kitti(kitti_world, "train", ("Van",))
    assert len(vans.labels) > 0 and (vans.labels == 0).all()
    both = load_kitti(kitti_world, "train", ("Car", "Van"))
    assert (both.labels == 1).sum() == len(vans.labels)


def test_files_are_read_once_while_they_do_not_change(world, monkeypatch):
    index = load_kitti(world, "train", CLASSES)
    assert load_kitti(str(world), "train", list(CLASSES)) is index
    label_file(world).write_text(CAR.format(z="12.00") + "\n")
    changed = load_kitti(world, "train", CLASSES)
    assert changed.record(0).boxes.depth.tolist() == [12.0]
    (world / "ImageSets" / "train.txt").write_text(f"{FRAME}\n")
    assert len(load_kitti(world, "train", CLASSES)) == 1
    monkeypatch.setattr(kitti, "read_labels", lambda _: pytest.fail("read again"))
    assert len(load_kitti(world, "train", CLASSES)) == 1
    assert len(pickle.dumps(index)) < 10_000


def test_objects_that_are_not_in_front_of_the_camera_are_left_out_and_counted(world, caplog):
    rows = [CAR.format(z=z) for z in ("0.00", "-3.00", "8.00")]
    rows.append("DontCare -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10")
    label_file(world).write_text("\n".join(rows))
    with caplog.at_level(logging.WARNING):
        index = load_kitti(world, "train", CLASSES)
    assert index.record(0).boxes.depth.tolist() == [8.0]
    assert (
        "train: left out 2 objects of Pedestrian, Cyclist, Car whose centres are not in front" in caplog.text
    )


def test_a_frame_without_objects(world):
    label_file(world).write_text("")
    record = load_kitti(world, "train", CLASSES).record(0)
    assert record.boxes.tensor.shape == (0, 7) and record.boxes2d.shape == (0, 4) and len(record.labels) == 0


@pytest.mark.parametrize("split", ["test", "test_some"])
def test_test_splits_are_of_the_folder_testing_and_have_no_labels(world, split):
    (world / "training").rename(world / "testing")
    shutil.rmtree(world / "testing" / "label_2")
    (world / "ImageSets" / "train.txt").rename(world / "ImageSets" / f"{split}.txt")
    index = load_kitti(world, split, CLASSES)
    record = index.record(0)
    assert record.boxes is record.labels is record.boxes2d is None and record.image_id == FRAME
    assert "testing" in record.file_name and len(index) == len(TRAIN)


@pytest.mark.parametrize("folder", ["image_2", "calib", "label_2"])
def test_a_missing_file_is_named(world, folder):
    suffix = "png" if folder == "image_2" else "txt"
    (world / "training" / folder / f"{FRAME}.{suffix}").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{folder}/{FRAME}\.{suffix} does not exist, .* lists frame"
    ):
        load_kitti(world, "train", CLASSES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CAR.format(z="8.00").rsplit(" ", 1)[0], rf"{FRAME}\.txt, line 1: 14 columns"),
        (CAR.format(z="8.00").replace("Car", "Unicorn"), "unknown type 'Unicorn'"),
        (CAR.format(z="nan"), "z is 'nan'"),
        (
            CAR.format(z="8.00").replace("3.90", "0.00"),
            r"a Car of height, width, length \[1\.5, 1\.6, 0\.0\] m",
        ),
    ],
)
def test_a_bad_label_is_an_error_before_training(world, row, message):
    label_file(world).write_text(row + "\n")
    with pytest.raises(ValueError, match=message):
        load_kitti(world, "train", CLASSES)


def test_a_calibration_without_p2_is_an_error(world):
    path = world / "training" / "calib" / f"{FRAME}.txt"
    path.write_text(path.read_text().replace("P2:", "P9:"))
    with pytest.raises(ValueError, match=rf"{FRAME}\.txt has 0 rows P2"):
        load_kitti(world, "train", CLASSES)


def test_an_image_of_another_size_than_its_calibration_is_an_error(world):
    path = world / "training" / "calib" / f"{FRAME}.txt"
    lines = path.read_text().splitlines()
    p2 = next(i for i, line in enumerate(lines) if line.startswith("P2"))
    values = np.array([float(word) for word in lines[p2].split()[1:]]).reshape(3, 4)
    values[:2] *= 2
    lines[p2] = "P2: " + " ".join(map(str, values.reshape(-1)))
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"{FRAME}\.png is 320 x 96 .*expected within the middle half"):
        load_kitti(world, "train", CLASSES)


def test_an_image_that_is_no_png_is_an_error(world):
    (world / "training" / "image_2" / f"{FRAME}.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"\(6 bytes\) does not begin as a PNG"):
        load_kitti(world, "train", CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000000\n000001\n000000\n", r"line 3: frame 000000 is in line 1 already"),
        ("000000\n8\n", r"line 2: '8', expected a frame of six digits"),
        ("000000.png\n", "expected a frame of six digits"),
        ("../000000\n", "expected a frame of six digits"),
        ("\n\n", "lists no frame"),
    ],
)
def test_a_bad_frame_list_is_an_error(world, text, message):
    (world / "ImageSets" / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_kitti(world, "train", CLASSES)


@pytest.mark.parametrize("split", ["../../outside", "sub/val", "/tmp/val"])
def test_a_split_that_is_a_path_is_refused(world, split):
    with pytest.raises(ValueError, match=f"the split '{split}' is a path, expected the name of a list"):
        load_kitti(world, split, CLASSES)


def test_blank_lines_and_crlf_are_allowed(world):
    (world / "ImageSets" / "train.txt").write_bytes(b"000001\r\n\r\n000000\r\n\r\n")
    assert load_kitti(world, "train", CLASSES).frame_ids.tolist() == ["000001", "000000"]


def test_missing_root_and_split(kitti_world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Set DATASETS\.ROOT"):
        load_kitti(tmp_path / "gone", "train", CLASSES)
    with pytest.raises(FileNotFoundError, match="Splits there: train, val"):
        load_kitti(kitti_world, "trian", CLASSES)


def test_real_labels_project_onto_their_image_plane_boxes(shared_dir):
    """Whole cars: within 2 pixels of the boxes that were drawn by hand (found: 1.5 at most)."""
    root = shared_dir / "real" / "kitti-two"
    record = load_kitti(root, "train", ("Car",)).record(1)
    objects = read_labels(label_file(root, "000008"))
    objects = objects[objects.types == "Car"]
    size = (record.height, record.width)
    boxes2d = projected_boxes2d(record.boxes, torch.from_numpy(record.cam2img), size)
    whole = torch.from_numpy((objects.truncated == 0) & (objects.boxes2d[:, 3] < record.height - 5))
    assert int(whole.sum()) == 3
    torch.testing.assert_close(boxes2d[whole], record.boxes2d[whole], atol=2.0, rtol=0)
    # What is cut off by the image ends at its border in both, here at the width and height in pixels.
    assert boxes2d[2, 2:].tolist() == [1242, 375] and record.boxes2d[2, 2:].tolist() == [1241, 374]
