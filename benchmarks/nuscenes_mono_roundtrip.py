#!/usr/bin/env python3
"""What merging the cameras costs on nuScenes: the score of the cameras' own annotations, as JSON.

    python -m benchmarks.nuscenes_mono_roundtrip
    python -m benchmarks.nuscenes_mono_roundtrip --root data/nuscenes --version v1.0-mini --split mini_val

Every annotation that a camera's image shows is handed in as a detection of that image: what is missing from a
perfect score is lost on the way through the cameras and back. Without --root, a synthetic world is made in a
temporary directory.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from bevkd2.config import get_cfg
from bevkd2.data import data_format, load_dataset
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from bevkd2.data.synthetic import WorldConfig, generate

SPLIT = "synthetic_val"


def main() -> None:
    """Makes or takes a data set, scores its annotations, and prints the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=4, help="of the synthetic world; 8 key frames each")
    parser.add_argument("--root", help="a data set in nuScenes' layout, instead of the synthetic world")
    parser.add_argument("--version", default="v1.0-trainval", help="of --root")
    parser.add_argument("--split", default="val", help="of --root")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root, version, split = args.root, args.version, args.split
        if root is None:
            world = WorldConfig(num_train_scenes=0, num_val_scenes=args.scenes)
            root, version, split = str(Path(folder) / "world"), world.version, SPLIT
            generate(world, root, progress=False)
        report = score_annotations(root, version, split, Path(folder) / "out")
    print(json.dumps(report, indent=1))


def score_annotations(root: str, version: str, split: str, out: Path) -> dict[str, Any]:
    """The official score of a split's annotations, seen by its cameras and merged again."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("DATASETS.FORMAT", "nuscenes_mono", "DATASETS.ROOT", root),
            *("DATASETS.VERSION", version, "DATASETS.CACHE_DIR", str(out)),
        ]
    )
    evaluator = data_format(cfg).evaluator(cfg, split, out)
    evaluator.reset()
    index = load_dataset(cfg, split)
    for i in range(len(index)):
        evaluator.process(*annotations(index, i))
    scores = evaluator.evaluate()
    assert scores is not None, "this is the only process"
    kept = {name: round(value, 5) for name, value in scores["bbox"].items() if value == value}
    return {"split": split, "key frames": len(index.frames), "images": len(index), **kept}


def annotations(index: NuScenesMonoIndex, i: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """An image's sample, and what a model that finds every annotation returns of it."""
    record = index.record(i)
    assert record.boxes is not None and record.labels is not None and record.attributes is not None
    found = {
        "boxes": record.boxes,
        "scores": torch.full((len(record.labels),), 0.9),
        "labels": record.labels,
        "attributes": record.attributes,
    }
    return [{"image_id": record.image_id, **record.extra}], [found]


if __name__ == "__main__":
    main()
