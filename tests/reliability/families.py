"""The distillations that are killed: one of each detector family, small enough for a step of tens of ms."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.data.synthetic import KittiWorldConfig, SyntheticWorld, WorldConfig, generate
from bevkd2.distill import resolve_teacher, teacher_config
from bevkd2.engine import default_argument_parser, load_args

ROOT = Path(__file__).parents[2]
ITERATIONS = 8
_COMMON = (
    *("MODEL.DEVICE", "cpu", "SEED", 3, "DATALOADER.NUM_WORKERS", 2, "DATALOADER.CACHE_IMAGES", False),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 3),
    # Checkpoints, evaluations and rows of metrics.json coincide in some iterations and not in others.
    *("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINTS_TO_KEEP", 2),
    *("TEST.EVAL_PERIOD", 3, "TEST.PRINT_PERIOD", 2),
    # It differs in every evaluation; the scores of models that are hardly trained do not.
    *("TEST.BEST_METRIC", "total_loss"),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A distillation of a detector family."""

    name: str
    config: str
    """Under configs/."""
    world: SyntheticWorld
    both: tuple[Any, ...]
    """Options of student and teacher."""
    options: tuple[Any, ...] = ()
    """Options of the student alone."""

    def words(self, place: Path, output: Path, *options: Any, flags: tuple[str, ...] = ()) -> list[str]:
        """The words of the command line behind ``bevkd2 train``.

        Args:
            place: what :meth:`prepare` wrote.
            output: OUTPUT_DIR.
            *options: KEY, VALUE, ..., the last of a key counts.
            flags: such as --resume.
        """
        opts = [
            *_COMMON,
            *(*self.both, *self.options, "DATASETS.ROOT", place / self.name / "world"),
            *("DISTILL.TEACHER.WEIGHTS", place / self.name / "teacher.pth"),
            *("DISTILL.TEACHER.OPTS", repr(list(self.both)), "OUTPUT_DIR", output, *options),
        ]
        return ["--config-file", str(ROOT / "configs" / self.config), *flags, *map(str, opts)]

    def args(self, place: Path, output: Path, *options: Any, flags: tuple[str, ...] = ()) -> Any:
        """The same, parsed."""
        parser: argparse.ArgumentParser = default_argument_parser()
        return parser.parse_args(self.words(place, output, *options, flags=flags))

    def prepare(self, place: Path) -> None:
        """Writes the world and a teacher with random weights, once."""
        folder = place / self.name
        if (folder / "teacher.pth").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        generate(self.world, folder / "world", progress=False)
        cfg: CfgNode = load_args(self.args(place, folder / "unused"))
        resolve_teacher(cfg)
        torch.manual_seed(5)
        save_file({"model": build_model(teacher_config(cfg)).state_dict()}, folder / "teacher.pth")


_BEV = (
    *("MODEL.BEVFORMER.BEV_SHAPE", [8, 8], "MODEL.BEVFORMER.NUM_QUERIES", 8, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.BEVFORMER.FFN_DIM", 16, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 4, "MODEL.BEVFORMER.DROPOUT", 0.1),
)
_PGD = (
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FCOS3D.FEATURE_CHANNELS", 32),
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 4),
)
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "BEVFormer",
            "demo/distill.yaml",
            WorldConfig(num_train_scenes=2, num_val_scenes=3, frames_per_scene=2, image_size=(88, 32)),
            _BEV,
        ),
        Family(
            "PGD",
            "demo_mono/distill.yaml",
            KittiWorldConfig(num_train_frames=6, num_val_frames=3, image_size=(208, 64)),
            _PGD,
        ),
    )
}
