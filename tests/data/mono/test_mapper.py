import dataclasses

import numpy as np
import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.data.image_cache import ImageCache
from bevkd2.data.image_files import read_image
from bevkd2.data.kitti import load_kitti
from bevkd2.data.mono.affine import AffineAugmentation
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.modeling.mono.inputs import collate_images, collate_targets
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.structures import projected_boxes2d
from tests.data.kitti_fixture import IMAGE_SIZE

CLASSES = ("Pedestrian", "Cyclist", "Car")
KEYS = {"image", "cam2img", "image_to_original", "sample_id", "image_id", "file_name", "height", "width"}
OBJECT_KEYS = {"boxes", "labels", "boxes2d"}


def mapper(**changes) -> MonoMapper:
    return MonoMapper(**{"is_train": True, "flip_prob": 0.0, **changes})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def index(kitti_world):
    return load_kitti(kitti_world, "train", CLASSES)


@pytest.fixture(scope="module")
def full(index):
    """The frame with the most objects."""
    return int(np.diff(index.box_starts).argmax())


class Changed:
    """An index whose records differ in some fields."""

    def __init__(self, index, **changes):
        self.index, self.changes = index, changes

    def record(self, i):
        return dataclasses.replace(self.index.record(i), **self.changes)


def test_sample_keeps_the_contract(index, full):
    sample = mapper()(index, full, rng())
    record = index.record(full)
    assert set(sample) == KEYS | OBJECT_KEYS
    assert sample["image"].shape == (3, *IMAGE_SIZE) and sample["image"].dtype is torch.uint8
    assert torch.equal(sample["image"], read_image(record.file_name, "x", IMAGE_SIZE, "y"))
    assert sample["cam2img"].dtype is torch.float32 and sample["image_to_original"].dtype is torch.float32
    assert torch.equal(sample["image_to_original"], torch.eye(3))
    torch.testing.assert_close(sample["cam2img"].double().numpy(), record.cam2img, rtol=1e-6, atol=1e-6)
    assert sample["sample_id"] == record.image_id
    assert (sample["image_id"], sample["height"], sample["width"]) == (record.image_id, *IMAGE_SIZE)
    assert sample["labels"].dtype is torch.int64 and sample["boxes2d"].dtype is torch.float32
    assert sample["boxes"].tensor.dtype is torch.float32
    torch.testing.assert_close(sample["boxes"].tensor, record.boxes.tensor)
    assert len(sample["boxes"]) == len(sample["labels"]) == len(sample["boxes2d"]) == len(record.labels) > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"flip_prob": 1.0},
        {"resize_within": (200, 200), "flip_prob": 1.0},
        {"warp_size": (256, 80), "augmentation": AffineAugmentation(prob=1.0), "flip_prob": 0.5},
        {"warp_size": (256, 80), "is_train": False},
    ],
)
def test_objects_agree_with_the_calibration_of_the_sample(index, full, changes):
    for seed in range(4):
        sample = mapper(**changes)(index, full, rng(seed))
        size = tuple(sample["image"].shape[1:])
        again = projected_boxes2d(sample["boxes"], sample["cam2img"], size)
        torch.testing.assert_close(sample["boxes2d"], again, rtol=0, atol=0.01)
        assert (sample["boxes2d"][:, 2:] > sample["boxes2d"][:, :2]).all()
        assert (sample["boxes"].rotation_y.abs() <= np.pi + 1e-6).all()
        assert ("affine_augmented" in sample) == ("warp_size" in changes)
        assert sample.get("affine_augmented", False) == ("augmentation" in changes)


def test_training_flips_with_the_configured_probability(index, full):
    plain = mapper(is_train=False)(index, full, rng())["image"]
    images = [mapper(flip_prob=0.5)(index, full, rng(seed))["image"] for seed in range(40)]
    flips = sum(torch.equal(image, plain.flip(-1)) for image in images)
    assert sum(torch.equal(image, plain) for image in images) == 40 - flips
    assert 10 < flips < 30


def test_test_samples_are_annotated_and_not_augmented(index, full):
    settings = {"flip_prob": 1.0, "photometric": True, "resize_within": (200, 200)}
    test = mapper(is_train=False, **settings)
    a, b = test(index, full, rng(0)), test(index, full, rng(1))
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["boxes2d"], b["boxes2d"])
    assert a["image"].shape == (3, 60, 200) and set(a) == KEYS | OBJECT_KEYS
    torch.testing.assert_close(a["image_to_original"], torch.diag(torch.tensor([1.6, 1.6, 1.0])))


def test_photometric_distortion_keeps_the_geometry(index, full):
    plain, distorted = (mapper(photometric=p)(index, full, rng(3)) for p in (False, True))
    assert not torch.equal(plain["image"], distorted["image"])
    assert torch.equal(plain["cam2img"], distorted["cam2img"])
    assert torch.equal(plain["boxes2d"], distorted["boxes2d"])


def test_objects_outside_of_the_image_are_left_out(index, full):
    boxes = index.record(full).boxes[:1].clone()
    boxes.tensor[:, 0] = 200.0  # metres to the right
    record = {"boxes": boxes, "labels": torch.tensor([2]), "boxes2d": torch.tensor([[1.0, 1.0, 9.0, 9.0]])}
    sample = mapper()(Changed(index, **record), full, rng())
    assert len(sample["boxes"]) == len(sample["labels"]) == len(sample["boxes2d"]) == 0
    kept = mapper(boxes2d="label")(Changed(index, **record), full, rng())
    assert kept["boxes2d"].tolist() == [[1.0, 1.0, 9.0, 9.0]] and kept["labels"].tolist() == [2]


def test_label_boxes_are_moved_and_clipped(index, full):
    record = index.record(full)
    width = IMAGE_SIZE[1]
    boxes2d = record.boxes2d.clone()
    boxes2d[0] = torch.tensor([-5.0, 10.0, 20.0, 500.0])
    boxes2d[1] = torch.tensor([-9.0, 10.0, -5.0, 20.0])
    changed = Changed(index, boxes2d=boxes2d)
    sample = mapper(boxes2d="label", flip_prob=1.0)(changed, full, rng())
    assert len(sample["boxes2d"]) == len(boxes2d) - 1
    assert sample["boxes2d"][0].tolist() == [width - 20, 10, width, IMAGE_SIZE[0]]
    torch.testing.assert_close(sample["boxes2d"][1:, 0], width - boxes2d[2:, 2])


def test_attributes_and_extra_go_with_the_objects(index, full):
    record = index.record(full)
    boxes = record.boxes.clone()
    boxes.tensor[0, 0] = 200.0
    attributes = torch.arange(len(boxes))
    extra = {"camera": "CAM_FRONT", "cam2global": np.eye(4)}
    sample = mapper()(Changed(index, boxes=boxes, attributes=attributes, extra=extra), full, rng())
    assert sample["attributes"].tolist() == attributes[1:].tolist()
    assert sample["camera"] == "CAM_FRONT" and sample["cam2global"].dtype is torch.float64


def test_images_without_labels(index, full):
    unlabelled = Changed(index, boxes=None, labels=None, boxes2d=None)
    assert set(mapper(is_train=False)(unlabelled, full, rng())) == KEYS
    with pytest.raises(ValueError, match=r"has no labels; DATASETS\.TRAIN must name annotated splits"):
        mapper()(unlabelled, full, rng())
    with pytest.raises(ValueError, match="has no image-plane boxes of its own"):
        mapper(boxes2d="label")(Changed(index, boxes2d=None), full, rng())


def test_an_image_of_another_size_than_its_header_said(index, full):
    with pytest.raises(ValueError, match=r"of frame '\d{6}' is 96 x 320 .* its dataset says 97 x 320"):
        mapper()(Changed(index, height=97), full, rng())


def test_cached_images_are_the_read_ones(index):
    small = mapper(resize_within=(160, 160))
    shapes = [small.cached_shape(index, i) for i in range(len(index))]
    assert shapes == [(3, 48, 160)] * len(index)
    cache = ImageCache(shapes)
    for i in (3, 1):
        plain, first, second = (small(index, i, rng(), c)["image"] for c in (None, cache, cache))
        assert torch.equal(plain, first) and torch.equal(plain, second)
        assert torch.equal(plain, cache.get(i, lambda: pytest.fail("read again")))


def test_models_take_the_samples(index, full):
    """Two frames in a batch, one of them without objects in it."""
    empty = int(np.diff(index.box_starts).argmin())
    samples = [mapper(flip_prob=1.0)(index, i, rng()) for i in (full, empty)]
    assert len(samples[1]["boxes"]) == 0
    inputs = collate_images(samples, PixelNormalizer([0.0] * 3, [1.0] * 3), [8])
    targets = collate_targets(samples, inputs, len(CLASSES))
    center, box = targets.centers2d[0], targets.boxes2d[0]
    whole = (box[:, 0] > 0) & (box[:, 2] < IMAGE_SIZE[1])
    assert whole.any() and ((center > box[:, :2]) & (center < box[:, 2:]))[whole].all()


def mono_cfg(**changes):
    cfg = get_cfg()
    cfg.DATASETS.FORMAT = "kitti"
    cfg.merge_from_list([word for key, value in changes.items() for word in (key.replace("__", "."), value)])
    return cfg


def test_settings_come_from_the_config():
    cfg = mono_cfg(INPUT__RESIZE_TRAIN=[1242, 375], INPUT__FLIP_PROB=0.25, INPUT__BOXES2D="label")
    train, test = MonoMapper(cfg, is_train=True), MonoMapper(cfg, is_train=False)
    assert train.resize_within == (1242, 375) and test.resize_within is None
    assert train.flip_prob == 0.25 and test.flip_prob == 0.0
    assert train.distort is not None and test.distort is None
    assert train.warp_size is None and train.augmentation is None
    assert train.boxes2d == test.boxes2d == "label"
    smoke = mono_cfg(INPUT__AFFINE__ENABLED=True, INPUT__AFFINE__SCALE=[0.8, 1.2])
    train, test = MonoMapper(smoke, is_train=True), MonoMapper(smoke, is_train=False)
    assert train.warp_size == test.warp_size == (384, 1280)
    assert train.augmentation == AffineAugmentation(0.3, 0.2, (0.8, 1.2), 0.1) and test.augmentation is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"INPUT__RESIZE_TRAIN": [1242]}, r"RESIZE_TEST is \[1242\], expected \[width, height\]"),
        ({"INPUT__RESIZE_TRAIN": [0, 375]}, "whole pixels above 0"),
        ({"INPUT__RESIZE_TRAIN": [0.5, 0.5]}, "whole pixels above 0"),
        ({"INPUT__FLIP_PROB": 1.5}, r"INPUT\.FLIP_PROB is 1\.5"),
        ({"INPUT__BOXES2D": "labels"}, r"BOXES2D is 'labels', expected one of projected, label"),
        ({"INPUT__AFFINE__ENABLED": True, "INPUT__RESIZE_TRAIN": [9, 9]}, r"AFFINE\.SIZE alone decides"),
        ({"INPUT__AFFINE__ENABLED": True, "INPUT__AFFINE__SIZE": [9]}, r"INPUT\.AFFINE\.SIZE is \[9\]"),
        ({"INPUT__AFFINE__ENABLED": True, "INPUT__AFFINE__SCALE": [1.4, 0.6]}, "affine augmentation"),
        ({"INPUT__AFFINE__SCALE": [0.6]}, r"AFFINE\.SCALE is \[0\.6\], expected \[least, largest\]"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MonoMapper(mono_cfg(**changes), is_train=True)
