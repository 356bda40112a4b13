import hashlib
import json

import pytest

from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.data.synthetic.staging import MARKER

SMALL = WorldConfig(num_train_scenes=2, num_val_scenes=1, frames_per_scene=2, image_size=(64, 32))


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_the_files_depend_on_the_configuration_alone(tmp_path):
    one = generate(SMALL, tmp_path / "one", workers=1, progress=False)
    two = generate(SMALL, tmp_path / "two", workers=2, progress=False)
    assert digests(one) == digests(two)
    # 3 scenes x 2 frames x 6 images, 13 tables, splits, the map and the marker.
    assert len(digests(one)) == 36 + 13 + 1 + 1 + 1


def test_another_seed_gives_another_world(tmp_path):
    one = generate(SMALL, tmp_path / "one", progress=False)
    config = WorldConfig(**{**SMALL.__dict__, "seed": 1})
    other = generate(config, tmp_path / "other", progress=False)
    a, b = digests(one), digests(other)
    images = [path for path in a if path.endswith(".jpg")]
    assert images
    assert all(a[path] != b[path] for path in images)


def test_the_same_world_is_kept(tmp_path):
    root = generate(SMALL, tmp_path / "world", progress=False)
    stamp = (root / MARKER).stat().st_mtime_ns
    generate(SMALL, root, progress=False)
    assert (root / MARKER).stat().st_mtime_ns == stamp


def test_another_world_needs_overwrite(tmp_path):
    root = generate(SMALL, tmp_path / "world", progress=False)
    harder = WorldConfig(**{**SMALL.__dict__, "hue_sigma": 0.5})
    with pytest.raises(FileExistsError, match=r"hue_sigma: 0.03, now 0.5.*--overwrite"):
        generate(harder, root, progress=False)
    generate(harder, root, overwrite=True, progress=False)
    assert json.loads((root / MARKER).read_text())["config"]["hue_sigma"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(config, root, index):
        raise OSError("no space left on device")

    monkeypatch.setattr("bevkd2.data.synthetic.nuscenes.world.write_scene", fail)
    with pytest.raises(OSError, match="no space"):
        generate(SMALL, tmp_path / "world", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_no_workers_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        generate(SMALL, tmp_path / "world", workers=0)
