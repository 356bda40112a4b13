"""Runs of equal seeds are paired: rows share the student's first weights, the data and every random draw.

A distillation's teacher and adapters must change none of them, else a difference between rows would hold the
difference between two random starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.data import build_train_loader
from bevkd2.distill import Distiller
from bevkd2.engine import build_trainer, default_argument_parser, setup
from tests.data.nuscenes_fixture import VERSION, FixtureWorld

STEPS = 3
SHORT = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", STEPS, "SOLVER.WARMUP_ITERS", 1, "SEED", 5]
ADAPTERS = {
    # MGD draws a mask in every step.
    "mono": ["PerspectiveFeature", "DepthGuidedPrediction", "MGD"],
    "multi_view": ["FitNet", "MGD", "SpatialAttention", "BEVResponse"],
}


@pytest.fixture(scope="module")
def cases(kitti_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[Any]]]:
    """Folder of configs and options, by name; the teachers are untrained."""
    folder = tmp_path_factory.mktemp("pairing")
    world = FixtureWorld(folder / "world", scenes=2)
    random = ["MODEL.GRID_MASK.ENABLED", True, "MODEL.BEVFORMER.DROPOUT", 0.1, "INPUT.PHOTOMETRIC", True]
    data = ["DATASETS.ROOT", str(world.root), "DATASETS.VERSION", VERSION]
    splits = ["DATASETS.TRAIN", ["both"], "DATASETS.TEST", ["first"]]
    small = ["MODEL.BEVFORMER.BEV_SHAPE", [8, 8], "MODEL.BEVFORMER.NUM_QUERIES", 9]
    teacher = ["DISTILL.TEACHER.OPTS", [*small, "MODEL.GRID_MASK.ENABLED", False]]
    found = {
        "mono": ("demo_mono", ["DATASETS.ROOT", str(kitti_world), "INPUT.FLIP_PROB", 0.5]),
        "multi_view": ("demo", [*random, *data, *splits, *small, *teacher]),
    }
    for name, (configs, options) in found.items():
        weights = folder / f"{name}.safetensors"
        path = f"configs/{configs}/teacher.yaml"
        cfg = load_config(path, ["MODEL.DEVICE", "cpu", *(small if name == "multi_view" else [])])
        torch.manual_seed(1)
        save_file(dict(build_model(cfg).state_dict()), weights)
        options += ["DISTILL.TEACHER.WEIGHTS", str(weights)]
    return found


def prepare(cfg_file: str, options: Sequence[Any]) -> CfgNode:
    """The config of a run, the random generators seeded as in one."""
    args = default_argument_parser().parse_args(["--config-file", f"configs/{cfg_file}.yaml"])
    args.opts = [*SHORT, *options]
    return setup(args)


def student_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    student = model.student if isinstance(model, Distiller) else model
    return {name: value.clone() for name, value in student.state_dict().items()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_equal_seeds_share_first_weights_data_and_draws(
    name: str, cases: dict[str, tuple[str, list[Any]]], tmp_path: Path
) -> None:
    folder, options = cases[name]
    methods = ["DISTILL.METHODS", ADAPTERS[name], "DISTILL.INHERIT.MODE", "off", "DISTILL.FACTOR", 0.0]
    rows = {"plain": ("student", []), "distilled": ("distill", methods)}
    starts, orders, adapters, losses = {}, {}, {}, {}
    for row, (file, own) in rows.items():
        cfg = prepare(f"{folder}/{file}", [*options, *own, "OUTPUT_DIR", str(tmp_path / row)])
        model = build_model(cfg)
        starts[row] = student_of(model)
        adapters[row] = sum(p.numel() for n, p in model.named_parameters() if n.startswith("methods."))
        loader = iter(build_train_loader(cfg))
        orders[row] = [[sample["sample_id"] for sample in next(loader)] for _ in range(STEPS)]
        trainer = build_trainer(cfg, model, evaluate=lambda *_, **__: {})
        trainer.train(0, STEPS)
        histories = {n: h for n, h in trainer.storage.histories().items() if n.startswith("loss_")}
        losses[row] = {n: [value for value, _ in history.values()] for n, history in histories.items()}
    assert adapters["plain"] == 0 < adapters["distilled"]
    assert orders["plain"] == orders["distilled"] and len({str(ids) for ids in orders["plain"]}) > 1
    assert starts["plain"].keys() == starts["distilled"].keys()
    for key, value in starts["plain"].items():
        assert torch.equal(value, starts["distilled"][key]), key
    # With FACTOR 0 the same losses follow in every step, up to the order of sums, if the draws are the same.
    assert any(name.startswith("loss_distill_") for name in losses["distilled"])
    for key, values in losses["plain"].items():
        assert len(values) == STEPS and losses["distilled"][key] == pytest.approx(values, rel=1e-3), key
        assert losses["distilled"][key][0] == pytest.approx(values[0], rel=1e-6), key
    # Another seed is another start, and another order.
    cfg = prepare(f"{folder}/student", [*options, "SEED", 6, "OUTPUT_DIR", str(tmp_path / "other")])
    other = student_of(build_model(cfg))
    assert any(not torch.equal(value, other[key]) for key, value in starts["plain"].items())
    loader = iter(build_train_loader(cfg))
    assert [[sample["sample_id"] for sample in next(loader)] for _ in range(STEPS)] != orders["plain"]
