import itertools
import multiprocessing.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from bevkd2.config import get_cfg
from bevkd2.data import build_test_loader, build_train_loader, data_format, load_dataset
from bevkd2.data import loader as loader_module
from bevkd2.distill import TEACHER_KEY, resolve_teacher
from bevkd2.engine.stop import STOP_SIGNALS
from tests.data.kitti_fixture import VAL
from tests.data.nuscenes_fixture import VERSION


@pytest.fixture
def cfg(fixture_world):
    cfg = get_cfg()
    cfg.DATASETS.ROOT = str(fixture_world.root)
    cfg.DATASETS.VERSION = VERSION
    cfg.DATASETS.TRAIN = ("both",)
    cfg.DATASETS.TEST = ("both",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 7
    return cfg


def batches(cfg, n, start_iter=0):
    return list(itertools.islice(iter(build_train_loader(cfg, start_iter)), n))


def assert_same(a, b):
    assert [s["sample_token"] for s in a] == [s["sample_token"] for s in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x["images"], y["images"])
        assert [h["sample_token"] for h in x["history"]] == [h["sample_token"] for h in y["history"]]


def test_batches_are_lists_of_samples(cfg):
    batch = batches(cfg, 1)[0]
    assert isinstance(batch, list) and len(batch) == 2
    assert batch[0]["images"].shape == (6, 3, 18, 32)


def test_workers_do_not_change_the_augmentation(cfg):
    alone = batches(cfg, 4)
    cfg.DATALOADER.NUM_WORKERS = 2
    for a, b in zip(alone, batches(cfg, 4), strict=True):
        assert_same(a, b)
    cfg.SEED = 8
    assert not torch.equal(alone[0][0]["images"], batches(cfg, 1)[0][0]["images"])


def test_resumed_loader_goes_on(cfg):
    whole = batches(cfg, 6)
    for a, b in zip(whole[4:], batches(cfg, 2, start_iter=4), strict=True):
        assert_same(a, b)


def test_ranks_split_the_batch(cfg, monkeypatch):
    whole = batches(cfg, 3)
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)
    dealt = []
    for rank in range(2):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        dealt.append(batches(cfg, 3))
    for a, b, c in zip(whole, *dealt, strict=True):
        assert_same(a, b + c)
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(
        ValueError, match="IMS_PER_BATCH is 3, expected a positive multiple of the 2 processes"
    ):
        build_train_loader(cfg)


def test_test_loader_is_in_order(cfg):
    samples = [batch[0] for batch in build_test_loader(cfg, "both")]
    assert [s["sample_token"] for s in samples] == ["s0f0", "s0f1", "s0f2", "s1f0", "s1f1", "s1f2"]
    assert all(s["history"] == [] for s in samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_give_equal_samples(cfg, workers):
    plain = batches(cfg, 7)
    cfg.DATALOADER.CACHE_IMAGES = True
    cfg.DATALOADER.NUM_WORKERS = workers
    for a, b in zip(plain, batches(cfg, 7), strict=True):
        assert_same(a, b)


class SignalsItself:
    """Samples that make their worker get every signal that ends a training, as the whole group may."""

    def __len__(self):
        return 2

    def __getitem__(self, key):
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        time.sleep(0.05)  # for the thread that heeds them
        return {"frame": key[0]}


def test_workers_leave_signals_to_their_parent_and_heed_it():
    sampler = loader_module.SceneSampler([range(2)])
    loader = loader_module._loader(SignalsItself(), sampler, 1, num_workers=1)
    iterator = iter(loader)
    assert [batch[0]["frame"] for batch in iterator] == [0, 1]
    idle = loader_module._loader(SignalsItself(), loader_module.SceneSampler([range(1)]), 1, num_workers=1)
    iterator = iter(idle)
    (worker,) = iterator._workers
    next(iterator)  # its only sample: from here on it sends itself no signals
    end = time.monotonic() + 10
    while worker.is_alive() and time.monotonic() < end:
        worker.terminate()  # what multiprocessing does at the end of the parent; equal signals are merged
        worker.join(0.5)
    assert worker.exitcode == 0


def running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_a_worker_ends_soon_after_its_parent():
    """Torch's own look for the parent takes up to 5 s."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            sampler = loader_module.SceneSampler([range(2)])
            iterator = iter(loader_module._loader(SignalsItself(), sampler, 1, num_workers=1))
            next(iterator)
            os.write(write, str(iterator._workers[0].pid).encode())
        finally:
            os._exit(0)  # also behind an error, which must not go on in a second pytest
    os.close(write)
    os.waitpid(parent, 0)
    worker, end = int(os.read(read, 20)), time.monotonic() + 3
    while running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(worker)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_a_parent_ends_though_its_signal_to_a_worker_is_lost():
    """One SIGTERM to all processes of a job, pending in a worker when multiprocessing sends it another."""
    parent = os.fork()
    if parent == 0:
        try:
            sampler = loader_module.SceneSampler([range(2)])
            iterator = iter(loader_module._loader(SignalsItself(), sampler, 1, num_workers=1))
            assert len(list(iterator)) == 2
            iterator = iter(loader_module._loader(SignalsItself(), sampler, 1, num_workers=1))
            worker = iterator._workers[0].pid
            next(iterator)
            os.kill(worker, signal.SIGSTOP)
            subprocess.run(["kill", str(worker)], check=True)  # it stays pending, and the next one is lost
            subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -CONT {worker}"])
            multiprocessing.util._exit_function()
            os._exit(7)
        finally:
            os._exit(1)
    end = time.monotonic() + 20
    while (ended := os.waitpid(parent, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    if not ended[0]:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert ended[0] and os.waitstatus_to_exitcode(ended[1]) == 7


def test_workers_fill_one_cache(cfg):
    cfg.DATALOADER.CACHE_IMAGES = True
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.DATASETS.TRAIN = ("first",)
    loader = build_train_loader(cfg)
    list(itertools.islice(iter(loader), 4))
    filled = loader.dataset._caches[""]._filled
    assert filled.shape == (3,) and filled.all()


def test_evaluation_reserves_no_memory_for_images_that_it_reads_once(cfg):
    cfg.DATALOADER.CACHE_IMAGES = True
    assert build_test_loader(cfg, "both").dataset._caches[""] is None


def test_several_training_splits(cfg):
    cfg.DATASETS.TRAIN = ("first", "both")
    assert len(build_train_loader(cfg).dataset) == 9


def test_no_training_split(cfg):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(cfg)


def test_unknown_format(cfg):
    cfg.DATASETS.FORMAT = "waymo"
    with pytest.raises(
        ValueError, match=r"DATASETS\.FORMAT is 'waymo', expected one of kitti, nuscenes, nuscenes_mono"
    ):
        load_dataset(cfg, "both")


def test_fewer_cameras(cfg):
    cfg.INPUT.CAMERAS = ["CAM_BACK", "CAM_FRONT"]
    sample = batches(cfg, 1)[0][0]
    assert sample["images"].shape[0] == 2 and sample["lidar2img"].shape == (2, 4, 4)


def mono(cfg, root, form):
    cfg.DATASETS.FORMAT = form
    cfg.DATASETS.ROOT = str(root)
    if form == "kitti":
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train", "val"), ("val",)
    return cfg


@pytest.fixture(params=["kitti", "nuscenes_mono"])
def mono_cfg(request, cfg):
    root = request.getfixturevalue("kitti_world")
    return mono(cfg, root if request.param == "kitti" else cfg.DATASETS.ROOT, request.param)


def assert_same_images(a, b):
    assert [s["image_id"] for s in a] == [s["image_id"] for s in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x["image"], y["image"]) and torch.equal(x["boxes2d"], y["boxes2d"])
        assert torch.equal(x["cam2img"], y["cam2img"])


@pytest.mark.parametrize(("workers", "cached"), [(2, False), (0, True), (2, True)])
def test_single_images_are_equal_in_every_worker(mono_cfg, workers, cached):
    mono_cfg.INPUT.RESIZE_TRAIN = [100, 100]
    plain = batches(mono_cfg, 10)
    assert max(len(sample["boxes"]) for batch in plain for sample in batch) > 0
    mono_cfg.DATALOADER.NUM_WORKERS, mono_cfg.DATALOADER.CACHE_IMAGES = workers, cached
    for a, b in zip(plain, batches(mono_cfg, 10), strict=True):
        assert_same_images(a, b)
    for a, b in zip(plain[6:], batches(mono_cfg, 4, start_iter=6), strict=True):
        assert_same_images(a, b)


def test_single_images_are_evaluated_once_by_one_rank(mono_cfg, monkeypatch):
    split = mono_cfg.DATASETS.TEST[0]
    whole = [batch[0]["image_id"] for batch in build_test_loader(mono_cfg, split)]
    assert len(whole) == len(set(whole)) == (3 if mono_cfg.DATASETS.FORMAT == "kitti" else 36)
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)
    dealt = []
    for rank in range(2):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        dealt.append([batch[0]["image_id"] for batch in build_test_loader(mono_cfg, split)])
    assert dealt[0] + dealt[1] == whole and all(dealt)


def test_kitti_frames_are_in_the_order_of_the_list(cfg, kitti_world):
    loader = build_test_loader(mono(cfg, kitti_world, "kitti"), "val")
    assert [batch[0]["image_id"] for batch in loader] == VAL


def test_classes_are_a_part_of_a_datasets_name(cfg, kitti_world):
    cfg = mono(cfg, kitti_world, "kitti")
    names = [data_format(cfg).dataset_name(cfg, "train")]
    cfg.DATASETS.CLASSES = ["Car"]
    names.append(data_format(cfg).dataset_name(cfg, "train"))
    cars = build_train_loader(cfg).dataset.index
    assert len(set(names)) == 2 and all((cars.record(i).labels == 0).all() for i in range(len(cars)))
    cfg.DATASETS.FORMAT = "nuscenes"
    with pytest.raises(
        ValueError, match=r"CLASSES is \['Car'\], but the classes of format 'nuscenes' are fixed"
    ):
        load_dataset(cfg, "both")


def test_training_needs_labels(cfg, kitti_world):
    cfg = mono(cfg, kitti_world, "kitti")
    cfg.DATASETS.TRAIN = ("test",)
    with pytest.raises(ValueError, match="names 'test', whose frames are in the folder testing"):
        load_dataset(cfg, "test")


@pytest.fixture
def distill_cfg(cfg, tmp_path):
    (tmp_path / "teacher.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: BEVFormer}\nINPUT: {IMAGE_SCALE: 1.0, QUEUE_LENGTH: 3}\n"
    )
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "Distiller", "INPUT.QUEUE_LENGTH", 2),
            *("DISTILL.TEACHER.CONFIG", str(tmp_path / "teacher.yaml"), "DISTILL.TEACHER.OWN_INPUT", True),
            *("INPUT.IMAGE_SCALE", 0.5),
        ]
    )
    resolve_teacher(cfg)
    return cfg


def test_a_teacher_with_its_own_input_gets_larger_images_of_the_same_frames(distill_cfg):
    for batch in batches(distill_cfg, 3):
        for sample in batch:
            teacher = sample[TEACHER_KEY]
            assert teacher["sample_token"] == sample["sample_token"]
            height, width = teacher["images"].shape[-2:]
            assert sample["images"].shape[-2:] == (height // 2, width // 2)
            scale = torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0]))
            torch.testing.assert_close(sample["lidar2img"], scale @ teacher["lidar2img"])
            assert len(teacher["history"]) >= len(sample["history"])


def test_the_teachers_images_are_augmented_as_the_students(distill_cfg):
    distill_cfg.INPUT.IMAGE_SCALE = 1.0  # so that the pixels can be compared; histories still differ
    for sample in batches(distill_cfg, 1)[0]:
        assert torch.equal(sample["images"], sample[TEACHER_KEY]["images"])


def test_without_its_own_input_a_sample_is_made_once(distill_cfg):
    distill_cfg.DISTILL.TEACHER.OWN_INPUT = False
    assert all(TEACHER_KEY not in sample for sample in batches(distill_cfg, 1)[0])


@pytest.mark.parametrize(("error", "printed"), [(ConnectionResetError(), False), (ValueError("odd"), True)])
def test_a_worker_is_silent_where_its_parent_has_ended(error, printed, capsys):
    loader_module._print_unless_parent_ended(type(error), error, None)
    assert ("odd" in capsys.readouterr().err) is printed


def test_workers_can_be_ended_where_a_signal_cannot_be_waited_for(cfg, monkeypatch):
    monkeypatch.delattr(signal, "sigtimedwait")  # as on macOS
    cfg.DATALOADER.NUM_WORKERS = 1
    iterator = iter(build_train_loader(cfg))
    next(iterator)
    (worker,) = iterator._workers
    worker.terminate()
    worker.join(5)
    ended = not worker.is_alive()
    worker.kill()
    assert ended


def test_a_signal_while_workers_start_is_dealt_with_afterwards(cfg, monkeypatch):
    calls = []
    handlers = {
        number: signal.signal(number, lambda number, _: calls.append(number)) for number in STOP_SIGNALS
    }
    started = DataLoader.__iter__

    def start(self):
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        iterator = started(self)
        assert not calls
        return iterator

    monkeypatch.setattr(DataLoader, "__iter__", start)
    cfg.DATALOADER.NUM_WORKERS = 1
    try:
        iterator = iter(build_train_loader(cfg))
        assert sorted(calls) == sorted(STOP_SIGNALS) and len(next(iterator)) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_images_are_decoded_small_by_key(cfg):
    cfg.INPUT.PHOTOMETRIC = False
    cfg.INPUT.IMAGE_SCALE = 0.5
    whole = batches(cfg, 1)[0][0]["images"]
    cfg.INPUT.REDUCED_DECODING = True
    reduced = batches(cfg, 1)[0][0]["images"]
    assert reduced.shape == whole.shape and not torch.equal(reduced, whole)
    assert (
        reduced.float() - whole.float()
    ).abs().mean() < 16  # of an image of noise, whose pixels differ by 85


def test_batches_are_pinned_by_key_where_there_is_a_gpu(cfg, monkeypatch):
    assert not build_train_loader(cfg).pin_memory
    cfg.DATALOADER.PIN_MEMORY = True
    assert build_train_loader(cfg).pin_memory == torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build_train_loader(cfg).pin_memory
