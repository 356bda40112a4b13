import json
import logging
import math
import re

import numpy as np
import pytest
import torch
from nuscenes.utils.geometry_utils import BoxVisibility

from bevkd2.data import load_nuscenes
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.nuscenes.tables import DanglingTokenError, NuScenesTables
from bevkd2.structures import CAMERA_NAMES, project_points
from tests.data.nuscenes_fixture import EGO_SPEED, EGO_YAW_RATE, VERSION, FixtureWorld, write_can_bus


def test_frames_of_a_split(fixture_world):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    assert len(index) == 6 and len(load_nuscenes(fixture_world.root, VERSION, "first")) == 3
    assert [frame["sample_token"] for frame in index] == ["s0f0", "s0f1", "s0f2", "s1f0", "s1f1", "s1f2"]
    assert index.scene_starts.tolist() == [0, 0, 0, 3, 3, 3]
    assert index.scenes() == [range(0, 3), range(3, 6)]
    assert index[4]["scene_token"] == "scene1"
    assert np.diff(index.timestamps[:3]).tolist() == [500_000, 500_000]
    assert [name.split("/")[-2] for name in index[0]["file_names"]] == list(CAMERA_NAMES)
    with pytest.raises(IndexError, match="which has 6 frames"):
        index[6]


@pytest.mark.parametrize("cameras", [(), ("CAM_BACK", "CAM_FRONT", "CAM_BACK")])
def test_no_camera_and_one_twice_are_refused(fixture_world, cameras):
    with pytest.raises(
        ValueError, match=r"INPUT\.CAMERAS is \[.*\], expected one camera or more, each once, of"
    ):
        load_nuscenes(fixture_world.root, VERSION, "first", cameras=cameras)


def test_only_the_ten_classes_are_kept(fixture_world):
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    names = [CLASS_NAMES[label] for label in index.labels[index.annotations(1)]]
    assert names == ["car", "pedestrian", "barrier", "car"]
    assert index.num_lidar_pts[index.annotations(0)].tolist() == [30, 4, 0, 2]


def test_boxes_equal_the_devkits(fixture_world):
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    tables = NuScenesTables(fixture_world.root, VERSION)
    for i in range(3):
        token = tables.get("sample", index[i]["sample_token"])["data"]["LIDAR_TOP"]
        _, boxes, _ = tables.get_sample_data(token)
        boxes = [box for box in boxes if box.name != "animal"]
        corners = index.boxes3d(i).corners().numpy()
        for ours, box in zip(corners, boxes, strict=True):
            np.testing.assert_allclose(ours, box.corners().T, atol=1e-4)


def test_velocity_is_the_devkits_in_the_lidar_frame(fixture_world):
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    moving = index.boxes3d(1).velocity[0]
    back = index.lidar2global[1, :2, :2] @ moving.double().numpy()
    np.testing.assert_allclose(back, [2.0, 0.0], atol=1e-5)  # 1 m along global x in half a second


def test_cameras_compensate_the_ego_motion(fixture_world):
    """A corner projected from the lidar's frame lands where the devkit's way through the globe puts it."""
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    tables = NuScenesTables(fixture_world.root, VERSION)
    rows, compared = {"s0f2-a0": 0, "s0f2-a1": 1, "s0f2-a2": 2, "s0f2-a4": 3}, 0
    for scale in (1, 0.5):
        size = (int(36 * scale), int(64 * scale))
        lidar2img = torch.from_numpy(index.lidar2img(2, [size] * 6))
        for c, camera in enumerate(CAMERA_NAMES):
            token = tables.get("sample", "s0f2")["data"][camera]
            _, boxes, intrinsics = tables.get_sample_data(token, box_vis_level=BoxVisibility.NONE)
            for box in boxes:
                if box.token not in rows or (box.corners()[2] < 0.5).any():
                    continue
                compared += 1
                corners = index.boxes3d(2).corners()[rows[box.token]].double()
                uv, _ = project_points(corners, lidar2img[c])
                expected = (intrinsics @ box.corners())[:2] / box.corners()[2] * scale
                np.testing.assert_allclose(uv.numpy(), expected.T, atol=0.01, rtol=1e-3)
    assert compared >= 8


def test_real_frame(shared_dir, tmp_path):
    index = load_nuscenes(shared_dir / "real" / "nuscenes-one", "v1.0-one", "one", str(tmp_path))
    assert len(index) == 1
    assert index.image_sizes.tolist() == [[[900, 1600]] * 6]
    tables = NuScenesTables(shared_dir / "real" / "nuscenes-one", "v1.0-one")
    lidar2img = torch.from_numpy(index.lidar2img(0, [(900, 1600)] * 6))
    boxes = {record["token"]: record for record in tables.sample_annotation}
    for c, camera in enumerate(CAMERA_NAMES):
        token = tables.sample[0]["data"][camera]
        _, seen, intrinsics = tables.get_sample_data(token)
        centers = np.array([boxes[box.token]["translation"] for box in seen])
        in_lidar = (centers - index.lidar2global[0, :3, 3]) @ index.lidar2global[0, :3, :3]
        uv, _ = project_points(torch.from_numpy(in_lidar), lidar2img[c])
        expected = np.array([(intrinsics @ box.center)[:2] / box.center[2] for box in seen])
        np.testing.assert_allclose(uv.numpy(), expected, atol=1e-5)


def test_can_bus_from_ego_poses(tmp_path, caplog):
    world = FixtureWorld(tmp_path, scenes=1, frames=4)
    with caplog.at_level(logging.INFO, logger="bevkd2.data"):
        for _ in range(2):  # built, then from the cache
            index = load_nuscenes(world.root, VERSION, "first")
    assert sum("from ego poses for 1" in record.getMessage() for record in caplog.records) == 1
    assert not index.from_can_bus.any()
    can_bus = index.can_bus
    np.testing.assert_allclose(can_bus[:, :3], index.ego2global[:, :3, 3])
    chord = 2 * EGO_SPEED / EGO_YAW_RATE * math.sin(EGO_YAW_RATE * 0.25) / 0.5
    np.testing.assert_allclose(np.hypot(can_bus[:, 13], can_bus[:, 14]), chord, rtol=1e-6)
    assert (can_bus[1:, 13] > 0.99 * EGO_SPEED).all()  # x is forward
    np.testing.assert_allclose(can_bus[:, 12], EGO_YAW_RATE, rtol=1e-6)
    # Centripetal: to the left, speed times yaw rate.
    np.testing.assert_allclose(can_bus[2:, 8], EGO_SPEED * EGO_YAW_RATE, rtol=0.05)
    np.testing.assert_allclose(can_bus[:, 16], 0.3 + EGO_YAW_RATE * 0.5 * np.arange(4), rtol=1e-6)
    np.testing.assert_allclose(can_bus[:, 17], np.rad2deg(can_bus[:, 16]))


def test_can_bus_from_the_expansion(tmp_path, caplog):
    world = FixtureWorld(tmp_path, scenes=2, frames=3)
    timestamps = [r["timestamp"] for r in world.tables["sample"] if r["scene_token"] == "scene0"]
    write_can_bus(world.root, "scene-0001", timestamps)
    with caplog.at_level(logging.INFO, logger="bevkd2.data"):
        index = load_nuscenes(world.root, VERSION, "both")
    assert "from the CAN bus expansion for 1 scenes, from ego poses for 1" in caplog.text
    assert index.from_can_bus.tolist() == [True] * 3 + [False] * 3
    np.testing.assert_allclose(index.can_bus[:3, 7:10], [[0, 0.1, 9.8], [1, 0.1, 9.8], [2, 0.1, 9.8]])
    np.testing.assert_allclose(index.can_bus[:3, 13], [5, 6, 7])
    np.testing.assert_allclose(index.can_bus[:, :3], index.ego2global[:, :3, 3])
    assert (index.can_bus[3:, 9] == 0).all()


POSE = {"utime": 1_000_000_000, "accel": [0, 0, 9.8], "rotation_rate": [0, 0, 0], "vel": [5, 0, 0]}


@pytest.fixture(scope="module")
def can_bus_world(tmp_path_factory):
    world = FixtureWorld(tmp_path_factory.mktemp("can_bus"), scenes=1, frames=2)
    (world.root / "can_bus").mkdir()
    return world


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is no valid JSON .*; 0 bytes\)"),
        (json.dumps([POSE])[:40], "is no valid JSON"),
        ("[]", r"holds \[\], expected a list of pose messages"),
        (json.dumps(POSE), "holds {.*, expected a list of pose messages"),
        ("[5]", "message 0: 5 has no number utime"),
        (json.dumps([{**POSE, "utime": None}]), "message 0: .* has no number utime"),
        (json.dumps([POSE, {**POSE, "vel": None}]), r"message 1 \(utime 1000000000\): vel is None"),
        (json.dumps([{**POSE, "accel": [0, 1]}]), r"accel is \[0, 1\], expected three finite numbers"),
        (json.dumps([{**POSE, "vel": [math.nan, 0, 0]}]), r"vel is \[nan, 0, 0\], expected three finite"),
        (json.dumps([{k: v for k, v in POSE.items() if k != "rotation_rate"}]), "rotation_rate is None"),
        (json.dumps([{**POSE, "vel": [1e30, 0, 0]}]), r"vel is \[1e\+30, 0, 0\], .* from -200 to 200 m/s;"),
        (json.dumps([{**POSE, "accel": [0, -9810, 0]}]), r"accel is \[0, -9810, 0\], .* 1000 m/s\^2;"),
        (json.dumps([{**POSE, "rotation_rate": [0, 0, 101]}]), "rotation_rate is .* 100 rad/s;"),
        (json.dumps([{**POSE, "utime": 1_000_000_000_000}]), "utime is 1000000000000 to .* in microseconds"),
        (json.dumps([{**POSE, "utime": 1_000}]), "utime is 1000 to 1000, but .* are at 1000000000 to"),
        (json.dumps([{**POSE, "utime": 998_000_000}]), "expected messages within 1 s of them"),
    ],
)
def test_a_damaged_pose_file_is_named(can_bus_world, content, message):
    (can_bus_world.root / "can_bus" / "scene-0001_pose.json").write_text(content)
    with pytest.raises(ValueError, match=rf"can_bus/scene-0001_pose\.json.*{message}.*or remove the file"):
        load_nuscenes(can_bus_world.root, VERSION, "first")


def test_a_pose_file_that_was_edited_is_read_again(can_bus_world):
    path = can_bus_world.root / "can_bus" / "scene-0001_pose.json"
    for speed in (5, 9):
        path.write_text(json.dumps([{**POSE, "vel": [speed, 0, 0]}]))
        index = load_nuscenes(can_bus_world.root, VERSION, "first")
        assert index.can_bus[:, 13].tolist() == [speed] * 2
    path.unlink()
    assert not load_nuscenes(can_bus_world.root, VERSION, "first").from_can_bus.any()


def test_key_frames_without_a_message_nearby_are_told(can_bus_world, caplog):
    path = can_bus_world.root / "can_bus" / "scene-0001_pose.json"
    path.write_text(json.dumps([{**POSE, "utime": POSE["utime"] - 900_000}]))
    index = load_nuscenes(can_bus_world.root, VERSION, "first")
    assert index.can_bus[:, 13].tolist() == [5, 5]
    assert "1 of 2 key frames of the scene have no pose message within 1 s" in caplog.text
    assert "(timestamp 1000500000 is 1.4 s from the next)" in caplog.text


@pytest.mark.parametrize("place", ["can_bus", "can_bus/scene-0001_pose.json", f"{VERSION}/splits.json"])
def test_a_link_to_nothing_is_named(tmp_path, place):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    path = world.root / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=rf"{path} is a link to nowhere, which does not exist"):
        load_nuscenes(world.root, VERSION, "first")


def test_pose_messages_in_any_order(can_bus_world):
    late = {**POSE, "utime": POSE["utime"] + 500_000, "vel": [7, 0, 0]}
    path = can_bus_world.root / "can_bus" / "scene-0001_pose.json"
    path.write_text(json.dumps([late, POSE]))
    assert load_nuscenes(can_bus_world.root, VERSION, "first").can_bus[:, 13].tolist() == [5, 7]


def test_blacklisted_scene_falls_back_to_poses(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    world.tables["scene"][0]["name"] = "scene-0161"
    world.splits = {"first": ["scene-0161"]}
    world.write()
    write_can_bus(world.root, "scene-0161", [r["timestamp"] for r in world.tables["sample"]])
    index = load_nuscenes(world.root, VERSION, "first")
    assert (index.can_bus[:, 9] == 0).all()


def test_single_frame_scene_has_no_motion(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    index = load_nuscenes(world.root, VERSION, "first")
    assert (index.can_bus[0, 7:16] == 0).all()
    assert np.isnan(index.boxes[:, 7:]).all()  # one annotation has no velocity


def test_frames_without_boxes_are_legal(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    world.tables["sample_annotation"] = []
    world.tables["instance"] = []
    world.write()
    index = load_nuscenes(world.root, VERSION, "first")
    assert [len(index.boxes3d(i)) for i in range(2)] == [0, 0]


def test_nan_box_names_the_annotation(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    world.tables["sample_annotation"][1]["translation"][0] = float("nan")
    world.write()
    with pytest.raises(ValueError, match=r"sample_annotation 's0f0-a1' .*translation is"):
        load_nuscenes(world.root, VERSION, "first")


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("ego_pose", "translation", [0.0, float("nan"), 0.0]),
        ("ego_pose", "rotation", [float("nan"), 0.0, 0.0, 1.0]),
        ("ego_pose", "rotation", [0.0, 0.0, 0.0, 0.0]),
        ("ego_pose", "rotation", [2.0, 0.0, 0.0, 0.0]),
        ("ego_pose", "rotation", [0.98, 0.0, 0.0, 0.0]),
        ("calibrated_sensor", "rotation", [0.7, 0.7, 0.7, 0.7]),
        ("calibrated_sensor", "translation", [float("inf"), 0.0, 0.0]),
        ("calibrated_sensor", "camera_intrinsic", [[1.0, 0.0, 0.0]]),
        ("calibrated_sensor", "camera_intrinsic", [[0.0, 0.0, 9.0], [0.0, 8.0, 9.0], [0, 0, 1]]),
        ("calibrated_sensor", "camera_intrinsic", [[8.0, 0.0, 9.0], [0.0, 8.0, 9.0], [0, 0, 0]]),
    ],
)
def test_impossible_calibration_or_pose_names_the_record(tmp_path, table, field, value):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    record = world.record(table, world.record("sample_data", "s0f1-CAM_BACK")[f"{table}_token"])
    record[field] = value
    world.write()
    with pytest.raises(ValueError, match=rf"{table} '{record['token']}'.*{field} is {re.escape(str(value))}"):
        load_nuscenes(world.root, VERSION, "first")


def test_rounded_quaternions_are_read(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    for table in ("ego_pose", "calibrated_sensor", "sample_annotation"):
        for record in world.tables[table]:
            record["rotation"] = [round(number, 2) for number in record["rotation"]]
    world.write()
    index = load_nuscenes(world.root, VERSION, "first")
    np.testing.assert_allclose(np.linalg.norm(index.can_bus[:, 3:7], axis=1), 1, atol=0.01)
    np.testing.assert_allclose(np.linalg.det(index.ego2global[:, :3, :3]), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("sample_data", "ego_pose_token"),
        ("sample_annotation", "prev"),
        ("sample_annotation", "attribute_tokens"),
        ("sample_annotation", "visibility_token"),
        ("sample", "next"),
    ],
)
def test_tokens_that_the_devkit_does_not_check(tmp_path, table, field):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    world.tables[table][0][field] = ["lost"] if field == "attribute_tokens" else "lost"
    world.write()
    with pytest.raises(
        DanglingTokenError, match=rf"'lost', to which {field} of record .* in table {table}.json"
    ):
        load_nuscenes(world.root, VERSION, "first")


def test_unknown_attribute_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    token = next(r for r in world.tables["sample_annotation"] if r["attribute_tokens"])["attribute_tokens"][0]
    world.record("attribute", token)["name"] = "vehicle.flying"
    world.write()
    with pytest.raises(ValueError, match=r"is named 'vehicle\.flying', expected one of cycle\.with_rider"):
        load_nuscenes(world.root, VERSION, "first")


@pytest.mark.parametrize("change", [lambda rows: rows.pop(0), lambda rows: rows.reverse()])
def test_visibility_levels_that_lack_a_record_or_their_order_are_refused(tmp_path, change):
    """They are counted, so that all levels would shift."""
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    change(world.tables["visibility"])
    world.write()
    with pytest.raises(ValueError, match=r"visibility\.json: .* token '4' is number \d, expected number 4"):
        load_nuscenes(world.root, VERSION, "first")


def test_truncated_scene_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=3)
    world.record("sample", "s0f1")["next"] = ""
    world.write()
    with pytest.raises(
        ValueError, match=r"'scene-0001' .* ends with sample 's0f1'.*last_sample_token is 's0f2'"
    ):
        load_nuscenes(world.root, VERSION, "first")


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/hostname", "samples/../../x.jpg", ""])
def test_image_outside_of_the_root_is_refused(tmp_path, name):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    (tmp_path / "outside.jpg").touch()
    world.record("sample_data", "s0f0-CAM_BACK")["filename"] = name
    world.write()
    with pytest.raises(
        ValueError, match=r"filename of CAM_BACK of sample 's0f0' is .*, expected a path below"
    ):
        load_nuscenes(world.root, VERSION, "first")


def test_folder_of_images_may_be_a_link(tmp_path):
    world = FixtureWorld(tmp_path / "root", scenes=1, frames=1)
    (world.root / "samples").rename(tmp_path / "disk")
    (world.root / "samples").symlink_to(tmp_path / "disk")
    assert len(load_nuscenes(world.root, VERSION, "first")) == 1


def test_missing_image_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    (world.root / "samples/CAM_BACK/s0f1-CAM_BACK.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"s0f1-CAM_BACK\.jpg does not exist \(CAM_BACK of sample 's0f1',"
    ):
        load_nuscenes(world.root, VERSION, "first")


def test_a_file_name_that_no_disk_takes_is_no_image(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    world.record("sample_data", "s0f0-CAM_BACK")["filename"] = "a" * 5000
    world.write()
    with pytest.raises(
        FileNotFoundError, match=r"does not exist \(CAM_BACK .* filename in sample_data\.json"
    ):
        load_nuscenes(world.root, VERSION, "first")


def test_a_scene_that_begins_late_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=3)
    world.tables["scene"][0]["first_sample_token"] = "s0f1"
    world.write()
    with pytest.raises(ValueError, match=r"'scene-0001' .* has 3 records in sample\.json .* has 2;"):
        load_nuscenes(world.root, VERSION, "first")


@pytest.mark.parametrize(
    ("table", "token", "field", "value", "message"),
    [
        ("scene", "scene-0002", "first_sample_token", "s0f0", r"'scene-0002' .*first_sample_token 's0f0' is"),
        ("sample_annotation", "s1f0-a0", "prev", "s0f1-a0", r"'s1f0-a0': prev is 's0f1-a0' .* of its scene"),
    ],
)
def test_a_link_to_another_scene_is_named(tmp_path, table, token, field, value, message):
    world = FixtureWorld(tmp_path, scenes=2, frames=2)
    (record,) = [r for r in world.tables[table] if token in (r["token"], r.get("name"))]
    record[field] = value
    world.write()
    with pytest.raises(ValueError, match=message):
        load_nuscenes(world.root, VERSION, "both")


@pytest.mark.parametrize(("field", "token"), [("next", "s0f1-a0"), ("prev", "s0f2-a0"), ("next", "s0f0-a0")])
def test_annotations_before_and_behind_are_of_earlier_and_later_samples(tmp_path, field, token):
    world = FixtureWorld(tmp_path, scenes=1, frames=3)
    world.record("sample_annotation", "s0f1-a0")[field] = token
    world.write()
    with pytest.raises(ValueError, match=rf"sample_annotation 's0f1-a0': prev is .* and next .*{token}"):
        load_nuscenes(world.root, VERSION, "first")


def test_missing_channel_is_named(fixture_world, tmp_path):
    with pytest.raises(ValueError, match="no key frame of CAM_TOP; it has CAM_BACK"):
        load_nuscenes(fixture_world.root, VERSION, "first", str(tmp_path), ("CAM_FRONT", "CAM_TOP"))


def test_times_must_increase(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=3)
    world.record("sample", "s0f2")["timestamp"] = world.record("sample", "s0f1")["timestamp"]
    world.write()
    with pytest.raises(ValueError, match="sample 's0f2' is the next of sample 's0f1'"):
        load_nuscenes(world.root, VERSION, "first")


@pytest.mark.parametrize(
    ("seconds", "unknown"),
    [
        ((0, 0.5, 1, 1.5), 0),
        ((0, 1.5, 3.01, 3.5), 1),  # the first two: 1.5; the second: 3.01 over two steps
        ((0, 1.6, 3, 4.5), 1),
        ((0,), 1),
    ],
)
def test_velocities_equal_the_devkits(tmp_path, seconds, unknown):
    """At both ends of a track and between them; NaN where the annotations are too far apart."""
    world = FixtureWorld(tmp_path, scenes=1, frames=len(seconds))
    for sample, time in zip(world.tables["sample"], seconds, strict=True):
        sample["timestamp"] = 1_000_000_000 + round(time * 1e6)
    world.write()
    index, tables = load_nuscenes(world.root, VERSION, "first"), NuScenesTables(world.root, VERSION)
    without = 0
    for i in range(len(index)):
        tokens = tables.get("sample", index[i]["sample_token"])["anns"]
        tokens = [t for t in tokens if tables.get("sample_annotation", t)["category_name"] != "animal"]
        devkits = np.array([tables.box_velocity(token) for token in tokens])
        devkits[:, 2] = 0
        found = index.boxes[index.annotations(i), 7:9]
        np.testing.assert_allclose(found, (devkits @ index.lidar2global[i, :3, :3])[:, :2], atol=1e-5)
        without += np.isnan(found).all()
    assert without == unknown
