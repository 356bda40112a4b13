import json
import shutil

import pytest

from bevkd2.nuscenes.record_checks import check_annotation
from bevkd2.nuscenes.splits import available_splits, custom_splits, scenes_of_split
from bevkd2.nuscenes.tables import DanglingTokenError, NuScenesTables
from tests.data.nuscenes_fixture import VERSION, FixtureWorld


def test_tables_load(fixture_world):
    tables = NuScenesTables(fixture_world.root, VERSION)
    assert len(tables.sample) == 6
    assert scenes_of_split(tables, "first") == ["scene-0001"]


def test_missing_root_says_how_to_point_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        NuScenesTables(tmp_path / "nowhere", VERSION)
    for part in ("nowhere", "DATASETS.ROOT", "bevkd2 make-synthetic --out DIR"):
        assert part in str(error.value)


def test_wrong_version_lists_those_there(fixture_world):
    with pytest.raises(FileNotFoundError, match=rf"no version 'v1\.0-mini'.*versions there: {VERSION}"):
        NuScenesTables(fixture_world.root, "v1.0-mini")


def test_wrong_split_lists_those_there(fixture_world):
    tables = NuScenesTables(fixture_world.root, VERSION)
    with pytest.raises(ValueError, match=r"no split 'nope'; splits there: both, first"):
        scenes_of_split(tables, "nope")


def test_official_names_are_the_official_splits(fixture_world):
    """As in the devkit: the fixture's own `train` is out of reach, and the error says why."""
    tables = NuScenesTables(fixture_world.root, VERSION)
    with pytest.raises(
        ValueError, match="'train' is an official nuScenes split, of versions that end in 'trainval'"
    ):
        scenes_of_split(tables, "train")


def test_official_splits_need_scenes(tmp_path):
    world = FixtureWorld(tmp_path, scenes=3, frames=1)
    (tmp_path / VERSION).rename(tmp_path / "v1.0-trainval")
    splits = available_splits(NuScenesTables(tmp_path, "v1.0-trainval"))
    # scene-0001 and scene-0002 are of nuScenes's train split, scene-0003 of its val split
    assert splits["train"] == ["scene-0001", "scene-0002"] and splits["val"] == ["scene-0003"]
    assert "test" not in splits and splits["both"] == world.splits["both"]


def test_split_with_unknown_scene_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    world.splits["odd"] = ["scene-0001", "scene-0777"]
    world.write()
    with pytest.raises(ValueError, match=r"'odd' .*'scene-0777'"):
        scenes_of_split(NuScenesTables(tmp_path, VERSION), "odd")


@pytest.mark.parametrize(
    ("table", "field", "target"),
    [
        ("sample_annotation", "instance_token", "instance"),
        ("sample_annotation", "sample_token", "sample"),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
        ("calibrated_sensor", "sensor_token", "sensor"),
        ("instance", "category_token", "category"),
    ],
)
def test_dangling_token_names_both_tables(tmp_path, table, field, target):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    record = world.tables[table][1]
    record[field] = "lost"
    world.write()
    with pytest.raises(DanglingTokenError) as error:
        NuScenesTables(tmp_path, VERSION)
    for part in (
        f"table {target}.json",
        "'lost'",
        f"{field} of record {record['token']!r} in table {table}.json",
    ):
        assert part in str(error.value)


def with_sweeps(root):
    """A world of two scenes with a sweep behind each key frame."""
    world = FixtureWorld(root, scenes=2, frames=2)
    for name in ("sample_data", "ego_pose"):
        sweep = {"token": "-sweep"} if name == "ego_pose" else {"token": "-sweep", "ego_pose_token": "-sweep"}
        rows = world.tables[name]
        world.tables[name] = [
            other
            for row in rows
            for other in (row, {**row, "is_key_frame": False, **{k: row[k] + v for k, v in sweep.items()}})
        ]
    world.write()
    return world


def test_sweeps_are_left_out(tmp_path):
    world = with_sweeps(tmp_path)
    tables = NuScenesTables(tmp_path, VERSION)
    keys = [row["token"] for row in world.tables["sample_data"] if row["is_key_frame"]]
    assert [row["token"] for row in tables.sample_data] == keys
    assert [row["token"] for row in tables.ego_pose] == keys
    assert tables.sample[0]["data"]["CAM_BACK"] == "s0f0-CAM_BACK"
    assert tables.get("sample_data", "s1f1-LIDAR_TOP")["sensor_modality"] == "lidar"


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample_data", {"height": None}, "record 's0f0-LIDAR_TOP-sweep': height is None"),
        ("sample_data", {"token": "s1f0-LIDAR_TOP"}, "two records with the token 's1f0-LIDAR_TOP'"),
        ("sample_data", {"calibrated_sensor_token": "lost"}, "of record 's0f0-LIDAR_TOP-sweep' in table"),
        ("ego_pose", {"rotation": None}, "record 's0f0-LIDAR_TOP-sweep': rotation is None"),
        ("ego_pose", {"token": "s1f0-LIDAR_TOP"}, "two records with the token 's1f0-LIDAR_TOP'"),
    ],
)
def test_sweeps_are_checked(tmp_path, table, change, message):
    world = with_sweeps(tmp_path)
    world.record(table, "s0f0-LIDAR_TOP-sweep").update(change)
    world.write()
    with pytest.raises((ValueError, DanglingTokenError), match=message):
        NuScenesTables(tmp_path, VERSION)


def test_a_split_has_the_data_of_its_scenes(tmp_path):
    with_sweeps(tmp_path)
    whole, first = NuScenesTables(tmp_path, VERSION), NuScenesTables(tmp_path, VERSION, "first")
    assert len(first.sample) == len(whole.sample) == 4
    assert [bool(sample["anns"]) for sample in first.sample] == [True, True, False, False]
    for name in ("sample_data", "ego_pose", "sample_annotation"):
        rows = getattr(first, name)
        assert (
            list(rows) == list(getattr(whole, name))[: len(rows)]
            and len(rows) == len(getattr(whole, name)) / 2
        )
    with pytest.raises(ValueError, match="no split 'nope'"):
        NuScenesTables(tmp_path, VERSION, "nope")


def test_damage_to_the_file_is_named_before_a_wrong_record(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    world.tables["sample_data"][0]["height"] = None
    world.tables["sample_data"][2]["token"] = world.tables["sample_data"][1]["token"]
    world.write()
    path = tmp_path / VERSION / "sample_data.json"
    whole = path.read_text()
    for content, message in (
        (whole[:-1], "is no valid JSON"),
        (whole[:-1] + ", 1]", "holds no list of records"),
        (whole, "height is None"),
        (whole.replace("null", "1"), "two records"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"sample_data\.json.*{message}"):
            NuScenesTables(tmp_path, VERSION)


@pytest.mark.parametrize("table", ["[]", "[", None])
def test_maps_are_not_needed(tmp_path, table):
    """Nor are lidarseg's labels, whose table may lie beside the others."""
    FixtureWorld(tmp_path, scenes=1, frames=1)
    shutil.rmtree(tmp_path / "maps")
    path = tmp_path / VERSION / "map.json"
    path.write_text(table) if table else path.unlink()
    (tmp_path / VERSION / "lidarseg.json").write_text("[]")
    assert len(NuScenesTables(tmp_path, VERSION).sample) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"first": ["scene-00', "is no valid JSON"),
        ("", r"is no valid JSON .*; 0 bytes\)"),
        ('["scene-0001"]', "holds a list, expected"),
        ('{"first": "scene-0001"}', "split 'first' is 'scene-0001', expected"),
        ('{"first": {"scene-0001": 1}}', "split 'first' is {.*}, expected"),
        ('{"first": [1]}', r"split 'first' is \[1\], expected"),
        ('{"first": null}', "split 'first' is None, expected"),
        ('{"first": [], "first": ["scene-0001"]}', r"is no valid JSON \(an object has the key 'first' twice"),
    ],
)
def test_damaged_splits_are_named(tmp_path, content, message):
    (tmp_path / VERSION).mkdir()
    (tmp_path / VERSION / "splits.json").write_text(content)
    with pytest.raises(ValueError, match=rf"splits\.json.* {message}"):
        custom_splits(tmp_path, VERSION)


def test_damaged_and_missing_tables_are_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    path = tmp_path / VERSION / "instance.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"instance\.json is no valid JSON"):
        NuScenesTables(tmp_path, VERSION)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"instance\.json does not exist"):
        NuScenesTables(tmp_path, VERSION)
    world.write()


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample", lambda row: row.pop("next"), "record 's0f0': next is missing"),
        ("sample", lambda row: row.update(timestamp="1"), "timestamp is '1', expected a number"),
        ("sample", lambda row: row.update(timestamp=float("nan")), "timestamp is nan, expected a number"),
        ("sample", lambda row: row.update(timestamp=2**63), "timestamp is 9.*, expected a number"),
        ("sample", lambda row: row.update(token="a\ud800"), r"token is 'a\\ud800', expected text"),
        ("sample", lambda row: row.update(token="a\0"), r"token is 'a\\x00', expected text"),
        ("sample", lambda row: row.update(token="a" * 10**5), "has no record with token 's0f0'"),
        ("scene", lambda row: row.update(name=["x" * 10**5]), r"name is \['x{50,60} \.\.\., expected text"),
        ("sample_data", lambda row: row.update(height=None), "height is None, expected a whole number"),
        ("sample_data", lambda row: row.update(width=2**40), "width is 10.*, expected a whole number"),
        ("sample_data", lambda row: row.update(height=True), "height is True, expected a whole number"),
        ("sample_annotation", lambda row: row.update(num_lidar_pts=2**63), "num_lidar_pts is 9.*, expected"),
        ("sample_annotation", lambda row: row.pop("size"), "record 's0f0-a0': size is missing"),
        ("log", lambda row: row.pop("token"), "record None: token is missing"),
        ("visibility", lambda row: row.update(token="2"), "two records with the token '2'"),
    ],
)
def test_fields_that_are_missing_or_of_another_type_are_named(tmp_path, table, change, message):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    change(world.tables[table][0])
    world.write()
    with pytest.raises((ValueError, DanglingTokenError), match=rf"{table}\.json.*{message}"):
        NuScenesTables(tmp_path, VERSION)


def test_annotations_that_are_lost_are_told(tmp_path, caplog):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    NuScenesTables(tmp_path, VERSION)
    assert not caplog.text
    world.tables["sample_annotation"].pop(1)
    world.write()
    NuScenesTables(tmp_path, VERSION)
    assert "has 0 records of instance 'scene0-i1', whose nbr_annotations is 1: objects are" in caplog.text


@pytest.mark.parametrize("content", ["{}", "[1]", "null"])
def test_a_table_that_is_no_list_of_records_is_named(tmp_path, content):
    FixtureWorld(tmp_path, scenes=1, frames=1)
    (tmp_path / VERSION / "log.json").write_text(content)
    with pytest.raises(ValueError, match=r"log\.json holds no list of records"):
        NuScenesTables(tmp_path, VERSION)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("translation", [0, float("nan"), 0]),
        ("rotation", [float("inf"), 0, 0, 0]),
        ("rotation", [0, 0, 0, 0]),
        ("rotation", [1e-300, 0, 0, 0]),
        ("rotation", [2, 0, 0, 0]),
        ("size", [1, 0, 1]),
        ("size", [1, 1]),
        ("size", [1, 1, 10**400]),
        ("translation", [0, None, 0]),
        ("num_lidar_pts", -1),
        ("attribute_tokens", ["a", "b"]),
    ],
)
def test_impossible_boxes_are_named(fixture_world, field, value):
    record = {**json.loads(json.dumps(fixture_world.tables["sample_annotation"][0])), field: value}
    with pytest.raises(ValueError, match=f"sample_annotation 's0f0-a0' .*{field} is"):
        check_annotation(record)
