"""An experiment that takes seconds, and results of runs that nobody trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bevkd2.experiments.results import result_path, write_result
from bevkd2.experiments.run import run_settings
from bevkd2.experiments.spec import Experiment, read_experiment

ITERATIONS = 4
STUDENT = {
    "_BASE_": "configs/demo_mono/student.yaml",
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 4, "RES2_OUT_CHANNELS": 4},
        "FPN": {"OUT_CHANNELS": 32},
    },
    "SOLVER": {"IMS_PER_BATCH": 1},
}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """What the YAML file says; the base config is written beside it."""
    (folder / "student.yaml").write_text(yaml.safe_dump(STUDENT))
    frames = "--format kitti --image-size 208x64 --train-frames 3 --val-frames"
    return {
        "name": "tiny",
        "title": "A tiny experiment",
        "config": str(folder / "student.yaml"),
        "worlds": {
            "train": {"root": str(folder / "train"), "arguments": f"{frames} 2"},
            "holdout": {"root": str(folder / "holdout"), "arguments": f"{frames} 3 --seed 1"},
        },
        "evaluation": "holdout",
        "primary": ["Car_3D_moderate_R40@0.5", "Car_BEV_easy_R40"],
        "secondary": ["Car_2D_moderate_R40"],
        "baseline": "plain",
        "seeds": [0],
        "average_last": 2,
        "overrides": {
            "SOLVER.MAX_ITER": ITERATIONS,
            "SOLVER.WARMUP_ITERS": 1,
            "SOLVER.CHECKPOINT_PERIOD": 1,
            "TEST.EVAL_PERIOD": 2,
            "TEST.PRINT_PERIOD": 1,
        },
        "rows": [{"name": "plain"}],
        **changes,
    }


def write(folder: Path, **changes: Any) -> Path:
    """Writes the experiment; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(folder, **changes), sort_keys=False))
    return path


def marked(folder: Path, **changes: Any) -> Experiment:
    """Returns an experiment whose worlds have nothing but their marker."""
    experiment = read_experiment(write(folder, **changes))
    for world in (experiment.train, experiment.scored):
        Path(world.root).mkdir(exist_ok=True)
        (Path(world.root) / "synthetic.json").write_text("{}")
    return experiment


def invent(
    experiment: Experiment,
    results: Path,
    scores: dict[str, dict[int, float]],
    units: int = 4,
    gradients: dict[str, Any] | None = None,
) -> None:
    """Writes results of runs, by row and seed; both primary metrics have the same score.

    Without unit u, the score of seed s is higher by 0.001 u times the sum of the seed and the row's place.
    """
    for place, (name, by_seed) in enumerate(scores.items()):
        for seed, score in by_seed.items():
            row = experiment.rows[name]
            without = [score + 0.001 * unit * (seed + place) for unit in range(units)]
            metrics = dict.fromkeys(experiment.primary, score)
            curve = [{"iteration": 2, "Car_3D_moderate_R40": score / 2}]
            curve.append({"iteration": 4, "Car_3D_moderate_R40": score})
            write_result(
                result_path(results, row, seed),
                {
                    "experiment": experiment.name,
                    "row": name,
                    "seed": seed,
                    "settings": run_settings(experiment, row, seed),
                    "metrics": {**metrics, "Car_2D_moderate_R40": 10 * score},
                    "units": [f"unit {unit}" for unit in range(units)],
                    "without": dict.fromkeys(experiment.primary, without),
                    "curve": curve,
                    "losses": {},
                    "gradients": {} if gradients is None else gradients.get(f"{name}_{seed}", {}),
                },
            )
