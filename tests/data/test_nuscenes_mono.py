import numpy as np
import pytest
import torch
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from pyquaternion import Quaternion
from torchvision.ops import box_iou

from bevkd2.data import load_nuscenes
from bevkd2.data.mono.index import JoinedIndex
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from bevkd2.data.samplers import SceneSampler
from bevkd2.nuscenes.layout import ATTRIBUTE_NAMES, CLASS_NAMES, MONO_CLASS_NAMES, NO_ATTRIBUTE, layout_labels
from bevkd2.structures import CAMERA_NAMES, project_boxes, projected_boxes2d
from tests.data.nuscenes_fixture import CAMERA_DELAY, EGO_SPEED, IMAGE_SIZE, VERSION, FixtureWorld

CLASSES = MONO_CLASS_NAMES


@pytest.fixture(scope="module")
def index(fixture_world):
    return NuScenesMonoIndex(load_nuscenes(fixture_world.root, VERSION, "both"), CLASSES)


def all_records(index):
    return [index.record(i) for i in range(len(index))]


def test_every_camera_of_every_key_frame_is_an_image(index):
    assert len(index) == 2 * 3 * 6
    assert index.groups()[1] == range(6, 12) and sum(map(len, index.groups())) == len(index)
    record = index.record(6 + 2)
    assert record.image_id == "s0f1/CAM_FRONT_LEFT"
    assert record.extra["sample_token"] == "s0f1" and record.extra["camera"] == "CAM_FRONT_LEFT"
    assert record.file_name.endswith("samples/CAM_FRONT_LEFT/s0f1-CAM_FRONT_LEFT.jpg")
    assert (record.height, record.width) == IMAGE_SIZE == index.image_size(8)
    assert record.cam2img.dtype == np.float64 and record.cam2img[0, 2] == IMAGE_SIZE[1] / 2 + 2
    with pytest.raises(IndexError, match="36 images"):
        index.record(36)


def test_the_cameras_pose_is_that_at_its_own_time(index, fixture_world):
    nusc = NuScenes(VERSION, str(fixture_world.root), verbose=False)
    record = index.record(3)
    data = nusc.get("sample_data", "s0f0-CAM_BACK")
    ego = nusc.get("ego_pose", data["ego_pose_token"])
    moved = np.array(ego["translation"]) - record.extra["ego2global"][:3, 3]
    assert np.linalg.norm(moved) == pytest.approx(EGO_SPEED * CAMERA_DELAY * 1e-6, rel=1e-3)
    calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    rotation = Quaternion(ego["rotation"])
    expected = rotation.rotate(np.array(calibration["translation"])) + ego["translation"]
    np.testing.assert_allclose(record.extra["cam2global"][:3, 3], expected, atol=1e-9)
    turned = (rotation * Quaternion(calibration["rotation"])).rotation_matrix
    np.testing.assert_allclose(record.extra["cam2global"][:3, :3], turned, atol=1e-9)


def boxes2d(record):
    return projected_boxes2d(record.boxes, torch.from_numpy(record.cam2img), (record.height, record.width))


def check_against_the_devkit(index, nusc, least_iou):
    """Every record holds the devkit's boxes of the camera's image, by the rule of `record`.

    least_iou: of the image-plane boxes with those of the devkit, which tilts its boxes with the camera.
    """
    seen = 0
    for record in all_records(index):
        sample = nusc.get("sample", record.extra["sample_token"])
        data = nusc.get("sample_data", sample["data"][record.extra["camera"]])
        # All boxes; the selection is ours.
        _, boxes, intrinsics = nusc.get_sample_data(data["token"], box_vis_level=BoxVisibility.NONE)
        expected = []
        for box in boxes:
            annotation = nusc.get("sample_annotation", box.token)
            corners = box.corners()
            if (
                annotation["num_lidar_pts"] == 0
                or box.center[2] <= 0
                or not category_to_detection_name(box.name)
            ):
                continue
            if not (corners[2] > 0.1).all():
                continue  # cut at the camera: the devkit does not
            uv = view_points(corners, intrinsics, normalize=True)[:2].T
            low, high = uv.min(0).clip(0), uv.max(0).clip(max=(record.width, record.height))
            if (high > low).all():
                expected.append((box, np.concatenate([low, high]), annotation))
        # Boxes that are not cut at the camera, in the order of the tables like the devkit's.
        _, depth = project_boxes(record.boxes, torch.from_numpy(record.cam2img))
        whole = (depth > 0.1).all(dim=1)
        assert int(whole.sum()) == len(expected)
        ours = zip(
            record.boxes[whole].tensor,
            boxes2d(record)[whole],
            record.labels[whole],
            record.attributes[whole],
            strict=True,
        )
        for (tensor, box2d, label, attribute), (box, extent, annotation) in zip(ours, expected, strict=True):
            np.testing.assert_allclose(tensor[:3], box.center, atol=1e-3)
            np.testing.assert_allclose(tensor[3:6], box.wlh[[1, 0, 2]], atol=1e-5)
            heading = box.orientation.rotation_matrix[:, 0]
            difference = float(tensor[6]) - np.arctan2(-heading[2], heading[0])
            assert abs(np.sin(difference / 2)) < 1e-3
            assert float(box_iou(box2d[None], torch.from_numpy(extent)[None].float())) > least_iou
            assert index.class_names[label] == category_to_detection_name(box.name)
            tokens = annotation["attribute_tokens"]
            name = nusc.get("attribute", tokens[0])["name"] if tokens else None
            assert attribute == (ATTRIBUTE_NAMES.index(name) if name else NO_ATTRIBUTE)
            seen += 1
    return seen


def test_objects_are_the_devkits_on_the_real_frame(shared_dir, tmp_path):
    root = shared_dir / "real" / "nuscenes-one"
    index = NuScenesMonoIndex(load_nuscenes(root, "v1.0-one", "one", str(tmp_path)), CLASSES)
    # The cameras are tilted by up to 2.1 degrees.
    assert check_against_the_devkit(index, NuScenes("v1.0-one", str(root), verbose=False), 0.9) > 70
    for record in all_records(index):
        assert record.boxes.depth.min() > 0 and record.boxes.velocity.isfinite().all()
        assert (boxes2d(record)[:, 2:] > boxes2d(record)[:, :2]).all()


def test_objects_are_the_devkits_in_the_fixture_world(index, fixture_world):
    nusc = NuScenes(VERSION, str(fixture_world.root), verbose=False)
    assert check_against_the_devkit(index, nusc, 0.999) > 6


def test_which_objects_are_kept(index):
    """The barrier has no lidar points and the animal no class."""
    names = {index.class_names[label] for record in all_records(index) for label in record.labels}
    assert names == {"car", "pedestrian"}


def test_velocities_are_in_the_cameras_axes(index):
    """The car drives along the global x at 2 m/s."""
    speeds = []
    for record in all_records(index):
        moving = record.attributes == ATTRIBUTE_NAMES.index("vehicle.moving")
        for vx, vz in record.boxes[moving].velocity.double().numpy():
            velocity = record.extra["cam2global"][:3, :3] @ [vx, 0, vz]
            np.testing.assert_allclose(velocity, [2.0, 0, 0], atol=1e-3)
            speeds.append(np.hypot(vx, vz))
    assert speeds


def test_labels_follow_the_order_of_the_classes(index):
    classes = ("pedestrian", "traffic_cone", "car")
    other = NuScenesMonoIndex(index.frames, classes)
    for a, b in zip(all_records(index), all_records(other), strict=True):
        assert [CLASSES[label] for label in a.labels] == [classes[label] for label in b.labels]
        torch.testing.assert_close(a.boxes.tensor, b.boxes.tensor)
    only_people = NuScenesMonoIndex(index.frames, ["pedestrian"])
    counts = [len(record.labels) for record in all_records(only_people)]
    assert counts == [int((r.labels == CLASSES.index("pedestrian")).sum()) for r in all_records(index)]
    assert 0 < sum(counts) < sum(len(record.labels) for record in all_records(index))


def test_wrong_classes_are_named(index):
    assert [CLASS_NAMES[i] for i in layout_labels(CLASSES)] == list(CLASSES)
    with pytest.raises(ValueError, match=r"DATASETS\.CLASSES has Car, unknown or twice; .* car, truck"):
        NuScenesMonoIndex(index.frames, ["Car", "bus"])
    with pytest.raises(ValueError, match="has bus, unknown or twice"):
        NuScenesMonoIndex(index.frames, ["bus", "bus"])


def test_unknown_velocities_are_zero(tmp_path):
    """The velocities in a scene of one frame are unknown."""
    frames = load_nuscenes(FixtureWorld(tmp_path, scenes=1, frames=1).root, VERSION, "first")
    assert np.isnan(frames.boxes[:, 7:]).all()
    records = all_records(NuScenesMonoIndex(frames, CLASSES))
    boxes = [record.boxes for record in records if len(record.boxes)]
    assert boxes and all((b.velocity == 0).all() for b in boxes)


def test_fewer_cameras(fixture_world):
    cameras = (CAMERA_NAMES[3], CAMERA_NAMES[0])
    frames = load_nuscenes(fixture_world.root, VERSION, "first", cameras=cameras)
    index = NuScenesMonoIndex(frames, CLASSES)
    assert [index.record(i).extra["camera"] for i in range(4)] == [*cameras, *cameras]


def test_joined_splits_keep_their_groups(index):
    assert len(JoinedIndex([index, index]).groups()) == 12


def test_key_frames_stay_together_on_their_rank(index):
    """The images of a key frame are evaluated by one process, every image by one."""
    shares = [[i for i, _ in SceneSampler(index.groups(), rank, 4)] for rank in range(4)]
    assert sorted(i for share in shares for i in share) == list(range(len(index)))
    frames = [{i // 6 for i in share} for share in shares]
    assert sum(map(len, frames)) == 6


def test_arrays_of_a_record_are_copies(index):
    i = next(i for i in range(len(index)) if len(index.record(i).labels))
    record = index.record(i)
    for name in ("cam2global", "lidar2global", "ego2global"):
        record.extra[name][:] = 0
    for tensor in (record.boxes.tensor, record.labels, record.attributes):
        tensor.fill_(-1)
    again = index.record(i)
    assert all(again.extra[name].any() for name in ("cam2global", "lidar2global", "ego2global"))
    assert (again.boxes.size > 0).all() and (again.labels >= 0).all() and (again.attributes >= 0).all()
