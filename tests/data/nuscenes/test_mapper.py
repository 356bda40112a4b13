import math

import numpy as np
import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.data import NuScenesMapper, load_nuscenes
from bevkd2.data.image_cache import ImageCache
from tests.data.nuscenes_fixture import VERSION, FixtureWorld

POINT_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
FRAME_KEYS = {"sample_id", "sample_token", "scene_token", "timestamp", "images", "lidar2img", "can_bus"}


def mapper(**changes) -> NuScenesMapper:
    settings = {"is_train": True, "image_scale": 0.5, "photometric": False, "queue_length": 3, **changes}
    return NuScenesMapper(point_range=POINT_RANGE, **settings)


@pytest.fixture(scope="module")
def long_world(tmp_path_factory):
    return FixtureWorld(tmp_path_factory.mktemp("long"), scenes=2, frames=6)


@pytest.fixture(scope="module")
def index(long_world):
    return load_nuscenes(long_world.root, VERSION, "both")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_training_sample_keeps_the_contract(index):
    sample = mapper()(index, 5, rng())
    assert set(sample) == FRAME_KEYS | {"lidar2global", "ego2global", "history", "boxes", "labels"}
    assert sample["images"].shape == (6, 3, 18, 32) and sample["images"].dtype is torch.uint8
    assert sample["lidar2img"].shape == (6, 4, 4) and sample["lidar2img"].dtype is torch.float32
    assert sample["can_bus"].shape == (18,) and sample["can_bus"].dtype is torch.float64
    assert sample["lidar2global"].dtype is torch.float64 and sample["ego2global"].shape == (4, 4)
    assert isinstance(sample["timestamp"], int) and sample["sample_token"] == "s0f5"
    assert len(sample["boxes"]) == len(sample["labels"]) and sample["labels"].dtype is torch.int64
    assert len(sample["history"]) == 2
    for frame in sample["history"]:
        assert set(frame) == FRAME_KEYS and frame["scene_token"] == sample["scene_token"]
    times = [frame["timestamp"] for frame in sample["history"]] + [sample["timestamp"]]
    assert times == sorted(set(times))


def test_scene_starts_have_less_history(index):
    seen = {i: set() for i in range(12)}
    for seed in range(60):
        for i, histories in seen.items():
            histories.add(tuple(mapper().history_frames(index, i, rng(seed))))
    assert seen[0] == seen[6] == {()}
    # One of the candidates -2, -1, 0 is dropped: within the scene 0 remains, or no frame.
    assert seen[1] == {(0,), ()}
    assert seen[7] == {(6,), ()}
    assert seen[2] == {(0,), (1,), (0, 1)}
    assert seen[5] == {(2, 3), (2, 4), (3, 4)}


def test_latest_history_is_always_one_key_frame_apart(index):
    for length in (1, 2, 3):
        latest = mapper(queue_length=length, history="latest")
        for seed in range(5):
            chosen = {i: latest.history_frames(index, i, rng(seed)) for i in (0, 1, 5, 6, 8)}
            assert chosen[0] == chosen[6] == []  # the first frames of two scenes
            assert chosen[1] == [0][: length - 1]
            assert chosen[5] == [3, 4][3 - length :]
            assert chosen[8] == [6, 7][3 - length :]
    with pytest.raises(ValueError, match=r"INPUT\.HISTORY is 'newest', expected one of random, latest"):
        mapper(history="newest")


@pytest.mark.parametrize("length", [1, 2, 4])
def test_history_is_one_shorter_than_the_queue(index, length):
    for seed in range(10):
        assert len(mapper(queue_length=length).history_frames(index, 5, rng(seed))) == length - 1


def test_test_sample_has_neither_history_nor_distortion(index):
    test = mapper(is_train=False, photometric=True)
    a, b = test(index, 4, rng(0)), test(index, 4, rng(1))
    assert a["history"] == []
    assert torch.equal(a["images"], b["images"])


def test_distortion_is_per_camera_and_frame_and_reproducible(index):
    train = mapper(photometric=True)
    a, b, c = train(index, 5, rng(0)), train(index, 5, rng(0)), train(index, 5, rng(1))
    assert torch.equal(a["images"], b["images"]) and not torch.equal(a["images"], c["images"])
    plain = mapper()(index, 5, rng(0))["images"]
    shifts = (a["images"].float() - plain.float()).mean(dim=(1, 2, 3))
    assert len(set(shifts.tolist())) >= 4


def test_boxes_are_filtered(index):
    """The barrier has no points, the parked car is out of range, the animal is no class."""
    _, labels = mapper().annotations(index, 1)
    assert labels.tolist() == [0, 8]
    near = NuScenesMapper(
        is_train=True, image_scale=1.0, photometric=False, queue_length=1, point_range=(-9, -9, -5, 9, 9, 3)
    )
    assert len(near.annotations(index, 1)[0]) == 0


def test_unknown_velocities_are_zero_and_yaw_is_wrapped(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    boxes, _ = mapper().annotations(load_nuscenes(world.root, VERSION, "first"), 0)
    assert (boxes.velocity == 0).all()
    assert (boxes.yaw >= -math.pi).all() and (boxes.yaw < math.pi).all()


def test_mapper_does_not_change_the_index(index):
    before = index.boxes.copy(), index.can_bus.copy(), index.lidar2global.copy()
    sample = mapper()(index, 3, rng())
    sample["boxes"].tensor.zero_()
    sample["can_bus"].zero_()
    sample["lidar2global"].zero_()
    for old, new in zip(before, (index.boxes, index.can_bus, index.lidar2global), strict=True):
        np.testing.assert_array_equal(old, new)


def test_truncated_jpeg_is_named(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    index = load_nuscenes(world.root, VERSION, "first")
    path = world.root / "samples/CAM_BACK/s0f1-CAM_BACK.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"s0f1-CAM_BACK\.jpg of sample 's0f1' cannot be decoded"):
        mapper()(index, 1, rng())
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"s0f1-CAM_BACK\.jpg of sample 's0f1' does not exist"):
        mapper()(index, 1, rng())


def test_from_config():
    cfg = get_cfg()
    cfg.INPUT.QUEUE_LENGTH = 5
    assert NuScenesMapper(cfg, is_train=True).queue_length == 5
    assert NuScenesMapper(cfg, is_train=False).queue_length == 1
    assert NuScenesMapper(cfg, is_train=True).history == "random"
    cfg.INPUT.HISTORY = "latest"
    assert NuScenesMapper(cfg, is_train=True).history == "latest"
    cfg.INPUT.POINT_RANGE = [-20.0, -30.0, -1.0, 20.0, 30.0, 1.0]
    assert NuScenesMapper(cfg, is_train=True).bev_limits == (-20.0, -30.0, 20.0, 30.0)
    cfg.INPUT.QUEUE_LENGTH = 0
    with pytest.raises(ValueError, match=r"INPUT\.QUEUE_LENGTH is 0"):
        NuScenesMapper(cfg, is_train=True)


def test_cached_images_are_the_read_ones(index):
    cache = ImageCache([(6, 3, 18, 32)] * len(index))
    plain, first, second = (mapper()(index, 4, rng(), c)["images"] for c in (None, cache, cache))
    assert torch.equal(plain, first) and torch.equal(plain, second)
    second.zero_()
    assert torch.equal(plain, cache.get(4, lambda: pytest.fail("read again")))


def test_cache_holds_frames_of_any_size():
    frames = [torch.full((3, 2 + i, 5), i, dtype=torch.uint8) for i in range(4)]
    cache = ImageCache([frame.shape for frame in frames])
    for i in (2, 0, 3, 1):
        assert torch.equal(cache.get(i, lambda i=i: frames[i]), frames[i])
    for i, frame in enumerate(frames):
        assert torch.equal(cache.get(i, lambda: pytest.fail("read again")), frame)


def test_cache_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"CACHE_IMAGES: 1 frames take .* GiB"):
        ImageCache([(10**9, 3, 450, 800)])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"torch\.uint8 \(3, 4, 5\)"),
        (torch.zeros(3, 2, 5), r"torch\.float32 \(3, 2, 5\)"),
    ],
)
def test_cache_refuses_other_images_than_announced(wrong, what):
    cache = ImageCache([(3, 2, 5)])
    with pytest.raises(ValueError, match=rf"frame 0 are {what}, expected uint8 \(3, 2, 5\).* cached_shape"):
        cache.get(0, lambda: wrong)
