"""The command that prints priors, on worlds in both layouts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from bevkd2.cli.console import run_cli
from bevkd2.config import load_config
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from tests.data.nuscenes_fixture import VERSION, FixtureWorld

ROOT = Path(__file__).parents[2]
CONFIG = "MODEL: {META_ARCHITECTURE: %s}\nDATASETS: {FORMAT: %s, TRAIN: [train, val]}\n"


@pytest.fixture
def compute_priors() -> ModuleType:
    from bevkd2.cli import compute_priors

    return compute_priors


def _config(folder: Path, architecture: str = "PGD", layout: str = "kitti") -> str:
    path = folder / "config.yaml"
    path.write_text(CONFIG % (architecture, layout))
    return str(path)


def _sizes(world: Path, name: str) -> list[list[float]]:
    """Length, height, width of all objects of a class, from the label files themselves."""
    rows = [line.split() for path in (world / "training/label_2").iterdir() for line in path.open()]
    return [[float(row[10]), float(row[8]), float(row[9])] for row in rows if row[0] == name]


def test_kitti(compute_priors: ModuleType, kitti_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert compute_priors.main(["--config-file", _config(tmp_path), "DATASETS.ROOT", str(kitti_world)]) == 0
    printed = capsys.readouterr().out
    node = yaml.safe_load(printed)["MODEL"]["FCOS3D"]
    cars = _sizes(kitti_world, "Car")
    assert f"# Car, {len(cars)} objects" in printed
    means = [sum(column) / len(cars) for column in zip(*cars, strict=True)]
    assert node["SIZE_PRIORS"][2] == pytest.approx(means, abs=0.006)
    assert len(node["DEPTH_PRIORS"]) == 3
    assert node["PRIOR_CLASSES"] == ["Pedestrian", "Cyclist", "Car"]


def test_what_is_printed_is_a_config(
    compute_priors: ModuleType, kitti_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = ["--config-file", _config(tmp_path), "--shared-depth", "DATASETS.ROOT", str(kitti_world)]
    assert compute_priors.main(arguments) == 0
    pasted = tmp_path / "pasted.yaml"
    pasted.write_text(capsys.readouterr().out)
    ((mean, deviation),) = load_config(pasted).MODEL.FCOS3D.DEPTH_PRIORS
    assert 0 < deviation < mean < 100


def test_smoke_has_one_depth_prior(
    compute_priors: ModuleType, kitti_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config = _config(tmp_path, "SMOKE")
    assert compute_priors.main(["--config-file", config, "DATASETS.ROOT", str(kitti_world)]) == 0
    node = yaml.safe_load(capsys.readouterr().out)["MODEL"]["SMOKE"]
    assert len(node["DEPTH_PRIOR"]) == 2
    assert len(node["SIZE_PRIORS"]) == 3


def test_nuscenes_one_camera_at_a_time(
    compute_priors: ModuleType, fixture_world: FixtureWorld, tmp_path: Path, capsys: pytest.CaptureFixture
):
    cfg = load_config(_config(tmp_path, layout="nuscenes_mono"), ["DATASETS.VERSION", VERSION])
    cfg.DATASETS.ROOT, cfg.DATASETS.CACHE_DIR = str(fixture_world.root), str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.CLASSES = ("both",), ["car"]
    priors = compute_priors.priors_of(cfg)
    index = NuScenesMonoIndex(load_nuscenes(fixture_world.root, VERSION, "both"), ["car"])
    cars = torch.cat([index.record(i).boxes.tensor for i in range(len(index))])
    assert priors.counts == [len(cars)]
    assert priors.depths[0] == pytest.approx((cars[:, 2].mean().item(), cars[:, 2].std(correction=0).item()))
    assert priors.sizes[0] == pytest.approx(cars[:, [3, 5, 4]].mean(dim=0).tolist())


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("BEVFormer", [], "has no priors"),
        ("PGD", ["DATASETS.CLASSES", "['Tram', 'Car']"], "'Tram'"),
        ("PGD", ["DATASETS.TRAIN", "['nowhere']"], "nowhere"),
        ("PGD", ["DATASETS.TRAIN", "[]"], "DATASETS.TRAIN is empty"),
        ("PGD", ["--import", "no_such_package"], "--import no_such_package"),
    ],
)
def test_errors_are_one_message(
    compute_priors: ModuleType,
    kitti_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    architecture: str,
    options: list[str],
    message: str,
):
    arguments = ["--config-file", _config(tmp_path, architecture), "DATASETS.ROOT", str(kitti_world)]
    assert run_cli(compute_priors.main, [*arguments, *options]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and "(--traceback prints it)" in printed.err
    assert not printed.out
