"""Computes the depth and size priors of FCOS3D, PGD or SMOKE from the annotations of DATASETS.TRAIN.

    bevkd2 compute-priors --config-file configs/pgd/pgd_r101_kitti.yaml DATASETS.ROOT data/kitti

Prints YAML to paste into a config: depths as mean and standard deviation, sizes as mean length, height and
width, in metres and in the order of DATASETS.CLASSES.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.config import CfgNode, class_names
from bevkd2.data.format import load_dataset
from bevkd2.data.mono.index import JoinedIndex, MonoIndex, annotated_objects, depths_of
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.modeling.mono.fcos3d.priors import BoxPriors, compute_priors

DENSE = ("FCOS3D", "PGD")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a monocular model")
    parser.add_argument(
        "--shared-depth", action="store_true", help="one depth prior for all classes (PGD on KITTI)"
    )
    add_import_option(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    return parser.parse_args(argv)


def all_objects(index: MonoIndex) -> tuple[Tensor, Tensor, Tensor]:
    """Returns all objects of a dataset.

    Args:
        index: annotated images.

    Returns:
        depths: (M,) metres, as the calibrations project the centres.
        published_sizes: (M, 3) length, height, width in metres.
        labels: (M,) int64.

    Raises:
        ValueError: an image without annotations.
    """
    depths, sizes, labels = [], [], []
    for i in range(len(index)):
        record = index.record(i)
        boxes, its_labels = annotated_objects(record)
        depths.append(depths_of(record))
        sizes.append(boxes.size[:, [0, 2, 1]])
        labels.append(its_labels)
    return torch.cat(depths), torch.cat(sizes), torch.cat(labels)


def to_yaml(priors: BoxPriors, names: Sequence[str], architecture: str, shared_depth: bool) -> str:
    """Returns the priors as keys of the model.

    Args:
        priors: of the classes.
        names: of the classes.
        architecture: "FCOS3D" | "PGD" | "SMOKE".
        shared_depth: one depth prior for all classes; SMOKE has no other.
    """

    def row(numbers: Sequence[float]) -> str:
        return f"[{', '.join(f'{number:.2f}' for number in numbers)}]"

    comments = [f"{name}, {count} objects" for name, count in zip(names, priors.counts, strict=True)]
    sizes = [f"    - {row(size)}  # {text}" for size, text in zip(priors.sizes, comments, strict=True)]
    if architecture not in DENSE:
        depths = [f"    DEPTH_PRIOR: {row(priors.shared_depth)}  # mean, deviation (m)"]
    elif shared_depth:
        depths = [f"    DEPTH_PRIORS: [{row(priors.shared_depth)}]  # mean, deviation (m)"]
    else:
        rows = [f"    - {row(depth)}  # {text}" for depth, text in zip(priors.depths, comments, strict=True)]
        depths = ["    DEPTH_PRIORS:  # mean, deviation (m)", *rows]
    node = "FCOS3D" if architecture in DENSE else architecture
    classes = f"    PRIOR_CLASSES: [{', '.join(names)}]"
    lines = [
        "MODEL:",
        f"  {node}:",
        classes,
        *depths,
        "    SIZE_PRIORS:  # length, height, width (m)",
        *sizes,
    ]
    return "\n".join(lines)


def priors_of(cfg: CfgNode) -> BoxPriors:
    """Returns the priors of a config's training splits.

    Args:
        cfg: of a monocular detector.

    Raises:
        ValueError: a config of another kind of model, or data that do not suffice.
    """
    if cfg.MODEL.META_ARCHITECTURE not in (*DENSE, "SMOKE"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which has no priors; expected "
            f"{', '.join(DENSE)} or SMOKE"
        )
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name the splits to measure, such as ('train',)")
    splits = [load_dataset(cfg, split) for split in cfg.DATASETS.TRAIN]
    return compute_priors(*all_objects(JoinedIndex(splits)), class_names(cfg))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the priors; returns the exit status."""
    args = parse_args(argv)
    cfg = load_args(args)
    priors = priors_of(cfg)
    print(to_yaml(priors, class_names(cfg), cfg.MODEL.META_ARCHITECTURE, args.shared_depth))
    return 0
