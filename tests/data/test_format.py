"""The built-in data formats: registration, the folder of the data, and what every sample has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bevkd2.data.format as format_module
from bevkd2.config import CfgNode, class_names, get_cfg
from bevkd2.d2 import DatasetCatalog, MetadataCatalog
from bevkd2.data import build_test_loader, build_train_loader, data_format, dataset_root, load_dataset
from bevkd2.engine import DistillTrainer, NonFiniteLossError, build_optimizer
from tests.data.kitti_fixture import TRAIN, VAL
from tests.data.nuscenes_fixture import VERSION
from tests.engine.toys import ToyDetector, toy_cfg

FORMATS = ("nuscenes", "nuscenes_mono", "kitti")


@pytest.fixture
def format_cfg(request: pytest.FixtureRequest) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.VERSION = request.param, VERSION
    kitti = request.param == "kitti"
    world = request.getfixturevalue("kitti_world" if kitti else "fixture_world")
    cfg.DATASETS.ROOT = str(world if kitti else world.root)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (("train",), ("val",)) if kitti else (("first",), ("both",))
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    return cfg


@pytest.mark.parametrize("format_cfg", FORMATS, indirect=True)
def test_only_register_writes_to_the_catalogs(format_cfg: CfgNode, tmp_path: Path) -> None:
    format_cfg.DATASETS.CLASSES = (
        [] if format_cfg.DATASETS.FORMAT == "nuscenes" else [class_names(format_cfg)[0]]
    )
    root = tmp_path / "root"  # a part of the name: no other test has registered it
    root.symlink_to(format_cfg.DATASETS.ROOT, target_is_directory=True)
    format_cfg.DATASETS.ROOT = str(root)
    form, split = data_format(format_cfg), format_cfg.DATASETS.TEST[0]
    name = form.dataset_name(format_cfg, split)
    assert name not in DatasetCatalog
    assert form.register(format_cfg, split) == form.register(format_cfg, split) == name
    assert MetadataCatalog.get(name).thing_classes == list(class_names(format_cfg))
    assert len(DatasetCatalog.get(name)) == len(load_dataset(format_cfg, split)) > 0
    assert build_test_loader(format_cfg, split).dataset.class_names == class_names(format_cfg)


@pytest.mark.parametrize("format_cfg", FORMATS, indirect=True)
def test_every_sample_has_an_id(format_cfg: CfgNode) -> None:
    split = format_cfg.DATASETS.TEST[0]
    ids = [batch[0]["sample_id"] for batch in build_test_loader(format_cfg, split)]
    assert len(set(ids)) == len(ids) > 0 and all(isinstance(i, str) for i in ids)
    if format_cfg.DATASETS.FORMAT == "kitti":
        assert ids == VAL
    assert isinstance(next(iter(build_train_loader(format_cfg)))[0]["sample_id"], str)


class Poisoned(ToyDetector):
    """A model whose loss is always NaN."""

    def forward(self, batched_inputs):
        return {"loss_box": sum(p.sum() for p in self.parameters()) * float("nan")}


@pytest.mark.parametrize("format_cfg", FORMATS, indirect=True)
def test_a_loss_that_is_not_finite_names_the_samples_of_any_format(
    format_cfg: CfgNode, tmp_path: Path
) -> None:
    cfg = toy_cfg(tmp_path)
    model = Poisoned(cfg)
    trainer = DistillTrainer(
        model, lambda start: build_train_loader(format_cfg, start), build_optimizer(cfg, model), seed=3
    )
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train(0, 1)
    named = re.search(r"on the samples (.*?)\. The weights", str(error.value)).group(1).split(", ")
    known = {
        "kitti": "|".join(TRAIN),
        "nuscenes": r"s\df\d",
        "nuscenes_mono": r"s\df\d/CAM_\w+",
    }[format_cfg.DATASETS.FORMAT]
    assert len(named) == 2 and all(re.fullmatch(known, name) for name in named), named


def test_a_relative_root_is_looked_for_in_the_datasets_folder(
    kitti_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(kitti_world.parent))
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT = "kitti", kitti_world.name
    assert dataset_root(cfg) == str(kitti_world)
    assert len(load_dataset(cfg, "val")) == len(VAL)
    (tmp_path / kitti_world.name).mkdir()  # an existing folder has priority
    assert dataset_root(cfg) == kitti_world.name
    cfg.DATASETS.ROOT = str(tmp_path / "absolute")
    assert dataset_root(cfg) == cfg.DATASETS.ROOT


def test_a_tilde_is_the_home_folder(
    kitti_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(kitti_world.parent))
    cfg = get_cfg()
    cfg.DATASETS.ROOT = f"~/{kitti_world.name}"
    assert dataset_root(cfg) == str(kitti_world)
    cfg.DATASETS.ROOT = kitti_world.name
    monkeypatch.setenv("DETECTRON2_DATASETS", "~")
    assert dataset_root(cfg) == str(kitti_world)


def test_a_missing_root_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.DATASETS.ROOT = "data/nowhere"
    monkeypatch.setenv("DETECTRON2_DATASETS", "/datasets")
    places = rf"neither {re.escape(str(tmp_path))}/data/nowhere nor /datasets/data/nowhere"
    with pytest.raises(FileNotFoundError, match=places):
        load_dataset(cfg, "val")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    with pytest.raises(FileNotFoundError, match=r"Set DATASETS\.ROOT"):
        load_dataset(cfg, "val")


def test_the_evaluator_reads_the_same_folder(
    kitti_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(kitti_world.parent))
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT = "kitti", kitti_world.name
    evaluator = data_format(cfg).evaluator(cfg, "val", tmp_path)
    with pytest.raises(ValueError, match="3 of them were not evaluated"):
        evaluator.evaluate()  # it found the list of frames


def test_a_format_without_an_abstract_method_is_an_error() -> None:
    class Half(format_module.DataFormat):
        name = "half"

    with pytest.raises(TypeError, match=r"abstract .*evaluator"):
        Half()


def test_a_format_does_not_change_shared_keys() -> None:
    """A format of a downstream package is registered last, when defaults may have been changed."""
    cfg = get_cfg()
    cfg.INPUT.FLIP_PROB = 0.1
    cfg.INPUT.AFFINE.ENABLED = True
    for name in ("kitti", "nuscenes_mono"):
        cfg.DATASETS.FORMAT = name
        data_format(cfg).add_config(cfg)
    assert cfg.INPUT.FLIP_PROB == 0.1 and cfg.INPUT.AFFINE.ENABLED
