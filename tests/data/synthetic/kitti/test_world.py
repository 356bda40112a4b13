import hashlib
import json
import pickle

import cv2
import pytest

from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from tests.data import kitti_fixture

SMALL = KittiWorldConfig(num_train_frames=3, num_val_frames=1, image_size=(104, 32))


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_files_depend_on_the_configuration_alone(tmp_path, monkeypatch):
    """What other processes would do, without starting them; test_world.py starts some."""

    def in_another_order(make, count, workers, unit, progress):
        assert workers == 2
        for index in reversed(range(count)):
            pickle.loads(pickle.dumps(make))(index)

    one = generate(SMALL, tmp_path / "one", workers=1, progress=False)
    monkeypatch.setattr("bevkd2.data.synthetic.kitti.world.map_indices", in_another_order)
    two = generate(SMALL, tmp_path / "two", workers=2, progress=False)
    assert digests(one) == digests(two)
    names = [f"training/{f}" for i in range(4) for f in (f"calib/{i:06d}.txt", f"label_2/{i:06d}.txt")]
    names += [f"training/image_2/{i:06d}.png" for i in range(4)]
    assert set(digests(one)) == {*names, "ImageSets/train.txt", "ImageSets/val.txt", "synthetic.json"}
    assert (one / "ImageSets" / "train.txt").read_text() == "000000\n000001\n000002\n"
    assert (one / "ImageSets" / "val.txt").read_text() == "000003\n"
    assert cv2.imread(str(one / "training/image_2/000002.png")).shape == (32, 104, 3)


def test_another_seed_gives_another_world(tmp_path):
    one = digests(generate(SMALL, tmp_path / "one", progress=False))
    config = KittiWorldConfig(**{**SMALL.__dict__, "seed": 1})
    other = digests(generate(config, tmp_path / "other", progress=False))
    assert all(one[path] != other[path] for path in one if path.endswith(".png"))


def test_a_world_of_the_other_layout_is_not_overwritten(tmp_path):
    nuscenes = WorldConfig(num_train_scenes=1, num_val_scenes=0, frames_per_scene=2, image_size=(32, 16))
    root = generate(nuscenes, tmp_path / "world", progress=False)
    with pytest.raises(FileExistsError, match=r"format nuscenes, now kitti.*--overwrite"):
        generate(SMALL, root, progress=False)
    generate(SMALL, root, overwrite=True, progress=False)
    assert json.loads((root / "synthetic.json").read_text()) == SMALL.to_json()
    assert not (root / "samples").exists()
    with pytest.raises(FileExistsError, match="format kitti, now nuscenes"):
        generate(nuscenes, root, progress=False)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(config, root, index):
        raise OSError("no space left on device")

    monkeypatch.setattr("bevkd2.data.synthetic.kitti.world.write_frame", fail)
    with pytest.raises(OSError, match="no space"):
        generate(SMALL, tmp_path / "world", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_fixture_is_what_its_names_say(kitti_world):
    kinds = {}
    for path in sorted((kitti_world / "training" / "label_2").iterdir()):
        kinds[path.stem] = {line.split()[0] for line in path.read_text().splitlines()}
    assert [name for name, found in kinds.items() if not found] == [kitti_fixture.EMPTY]
    for split in (kitti_fixture.TRAIN, kitti_fixture.VAL):
        found = set().union(*(kinds[name] for name in split))
        assert {"Car", "Pedestrian", "Cyclist", "Van", "DontCare"} <= found
    calibrations = {path.read_text() for path in (kitti_world / "training" / "calib").iterdir()}
    assert len(calibrations) == len(kinds) == 8
