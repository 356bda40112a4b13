import collections
import json

import cv2
import numpy as np
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.splits import get_scenes_of_split

from bevkd2.data.synthetic.nuscenes.scene import make_scene
from bevkd2.data.synthetic.nuscenes.tables import TABLE_NAMES
from bevkd2.structures import CAMERA_NAMES


def scenes_of(nusc):
    return {scene["token"]: int(scene["name"].rsplit("-", 1)[1]) for scene in nusc.scene}


def test_the_devkit_loads_every_table(nusc, tiny_config):
    assert len(nusc.scene) == tiny_config.num_scenes
    assert len(nusc.sample) == tiny_config.num_scenes * tiny_config.frames_per_scene
    assert len(nusc.sample_data) == 7 * len(nusc.sample)
    assert len(nusc.sample_annotation) == tiny_config.objects_per_scene * len(nusc.sample)
    assert set(nusc.table_names) == set(TABLE_NAMES)
    for table in TABLE_NAMES:
        tokens = [record["token"] for record in getattr(nusc, table)]
        assert len(tokens) == len(set(tokens))


def test_the_devkit_finds_the_splits(nusc, tiny_config):
    for split, names in tiny_config.splits().items():
        assert get_scenes_of_split(split, nusc) == names


def test_chains_go_through_every_scene_in_time(nusc, tiny_config):
    for scene in nusc.scene:
        token, stamps = scene["first_sample_token"], []
        while token:
            sample = nusc.get("sample", token)
            assert set(sample["data"]) == {"LIDAR_TOP", *CAMERA_NAMES}
            stamps.append(sample["timestamp"])
            last, token = token, sample["next"]
        assert last == scene["last_sample_token"]
        assert np.diff(stamps).tolist() == [500_000] * (tiny_config.frames_per_scene - 1)


def test_images_are_there_with_the_written_size(nusc):
    for record in nusc.sample_data:
        if record["sensor_modality"] == "camera":
            image = cv2.imread(nusc.get_sample_data_path(record["token"]))
            assert image.shape == (record["height"], record["width"], 3)


def test_velocities_of_the_devkit_are_the_objects_motion(nusc, tiny_config):
    objects = [
        item
        for index in range(tiny_config.num_scenes)
        for item in make_scene(tiny_config, index).objects
        if item.kind is not None
    ]
    for instance, item in zip(nusc.instance, objects, strict=True):
        assert nusc.get("category", instance["category_token"])["name"] == item.kind.category
        token = instance["first_annotation_token"]
        for _ in range(instance["nbr_annotations"]):
            np.testing.assert_allclose(nusc.box_velocity(token)[:2], item.velocity, atol=1e-4)
            token = nusc.get("sample_annotation", token)["next"]
        assert token == ""


def test_points_and_visibility_follow_the_pixels(nusc, tiny_config):
    """No points with too few pixels or beyond the range of the lidar; all levels are legal."""
    levels, out_of_range = collections.Counter(), 0
    for annotation in nusc.sample_annotation:
        points = annotation["num_lidar_pts"]
        assert points == 0 or points >= tiny_config.min_visible_pixels
        sample = nusc.get("sample", annotation["sample_token"])
        box = nusc.get_sample_data(sample["data"]["LIDAR_TOP"], selected_anntokens=[annotation["token"]])[1][
            0
        ]
        if np.abs(box.center[:2]).max() > tiny_config.lidar_range:
            out_of_range += 1
            assert points == 0
        levels[annotation["visibility_token"]] += 1
    assert out_of_range > 0
    assert levels["4"] > levels["1"] > 0
    assert set(levels) <= {"1", "2", "3", "4"}


def test_visible_boxes_project_into_the_image_that_shows_them(nusc):
    """The devkit lists them for a camera, through the poses and calibrations that were written."""
    for sample in nusc.sample:
        seen = set()
        for camera in CAMERA_NAMES:
            boxes = nusc.get_sample_data(sample["data"][camera])[1]
            seen |= {box.token for box in boxes}
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            if annotation["num_lidar_pts"] >= 20:
                assert token in seen


def test_camera_poses_are_those_of_the_moving_ego(nusc):
    record = next(s for s in nusc.sample if scenes_of(nusc)[s["scene_token"]] == 0)
    lidar = nusc.get("sample_data", record["data"]["LIDAR_TOP"])
    camera = nusc.get("sample_data", record["data"]["CAM_FRONT_LEFT"])
    assert camera["timestamp"] - lidar["timestamp"] == -43_000
    poses = [nusc.get("ego_pose", r["ego_pose_token"]) for r in (lidar, camera)]
    assert poses[0]["timestamp"] == lidar["timestamp"]
    assert poses[0]["translation"] != poses[1]["translation"]


def ground_truth_as_results(nusc, split):
    scenes = get_scenes_of_split(split, nusc)
    names = {a["token"]: a["name"] for a in nusc.attribute}
    rng = np.random.default_rng(0)
    results = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] not in scenes:
            continue
        results[sample["token"]] = [
            {
                "sample_token": sample["token"],
                "translation": a["translation"],
                "size": a["size"],
                "rotation": a["rotation"],
                "velocity": nusc.box_velocity(a["token"])[:2].tolist(),
                "detection_name": category_to_detection_name(a["category_name"]),
                "detection_score": float(rng.uniform(0.1, 1)),
                "attribute_name": names[a["attribute_tokens"][0]] if a["attribute_tokens"] else "",
            }
            for a in (nusc.get("sample_annotation", t) for t in sample["anns"])
            if a["num_lidar_pts"] > 0
        ]
    meta = {f"use_{m}": m == "camera" for m in ("camera", "lidar", "radar", "map", "external")}
    return {"meta": meta, "results": results}


def test_ground_truth_has_the_best_score(nusc, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(ground_truth_as_results(nusc, "synthetic_val")))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(path), "synthetic_val", str(tmp_path), verbose=False)
    summary = evaluation.evaluate()[0].serialize()
    assert summary["mean_ap"] > 0.99
    assert summary["nd_score"] > 0.99
    assert max(summary["tp_errors"].values()) < 1e-3
