"""From real PNGs to KITTI's score: small PGD and SMOKE models overfit two KITTI frames."""

import json
from pathlib import Path

import pytest

from bevkd2.cli.train import main
from bevkd2.kitti import kitti_scores
from bevkd2.kitti.ap import to_json
from bevkd2.kitti.files import find_frames

ROOT = Path(__file__).parents[2]
FRAMES = ["000000", "000008"]
# Six cars, all in 000008. Two of them, truncated by more than 0.3 and of unknown occlusion, are ignored.
MODERATE_CARS = 4


@pytest.mark.slow
# Half of the steps of the configs.
@pytest.mark.parametrize(("detector", "steps"), [("pgd", 150), ("smoke", 130)])
def test_every_moderate_car_is_found(detector: str, steps: int, shared_dir: Path, tmp_path: Path) -> None:
    data, out = shared_dir / "real" / "kitti-two", tmp_path / "out"
    command = ["--config-file", str(ROOT / "configs" / "demo_mono" / f"two_frames_{detector}.yaml")]
    command += ["DATASETS.ROOT", str(data), "OUTPUT_DIR", str(out), "MODEL.DEVICE", "cpu"]
    command += ["SOLVER.MAX_ITER", str(steps)]
    assert main(command) == 0

    scores = kitti_scores(*find_frames(data / "training", out / "inference", FRAMES).read())
    written = json.loads((out / "inference" / "kitti_scores.json").read_text())
    assert {key: written[key] for key in to_json(scores)} == to_json(scores)
    cars = scores.curves["car/3d/moderate"]
    assert cars.min_overlap == 0.7
    assert cars.n_gt == MODERATE_CARS
    # At the lowest threshold. AP|R40 says less: with four cars it is 7.5 at most.
    assert (cars.tp[-1], cars.fn[-1], cars.recall[-1]) == (MODERATE_CARS, 0, 1.0)
