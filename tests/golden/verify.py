"""Holds this package against recorded numbers of the original implementations.

DIR is one of two layouts: a folder of BEVFormer cases
``<cfg>_s<seed>_{meta.json,weights.npz,in.npz,out.npz,attn.npz}``, or the monocular one with the folders
heads, ops, iou, full_nets, kitti_eval and kd. Tables show the largest differences; the exit status is 1
where one exceeds its tolerance or a recording is missing.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.golden import (
    bevformer,
    full_nets,
    iou,
    kd_defeat,
    kd_fgd,
    kd_repdistiller,
    kitti_eval,
    mono_ops,
    pgd_heads,
    pgd_losses,
    smoke_heads,
    smoke_net,
)
from tests.golden.report import Row, table

MONOCULAR = {
    "rotated boxes (iou)": iou.compare,
    "geometry, NMS and DCNv2 (ops)": mono_ops.compare,
    "PGD: head and decoding (heads)": pgd_heads.compare,
    "PGD: targets, losses, gradients (heads)": pgd_losses.compare,
    "PGD: the whole detectors (full_nets)": full_nets.compare,
    "SMOKE: head, targets, losses, gradients, decoding (heads)": smoke_heads.compare,
    "SMOKE: the whole detector (full_nets)": smoke_net.compare,
    "KITTI evaluation (kitti_eval)": kitti_eval.compare,
    "FGD (kd)": kd_fgd.compare,
    "DeFeat (kd)": kd_defeat.compare,
    "KD, FitNet, AT, SP, RKD, VID (kd)": kd_repdistiller.compare,
}
FOLDERS = ("heads", "ops", "iou", "full_nets", "kitti_eval", "kd")

Check = Callable[[], list[Row]]


def checks_of(directory: Path) -> dict[str, Check]:
    """The checks of a folder, by title.

    Raises:
        FileNotFoundError: the folder is of neither layout, or a monocular one lacks a part.
    """
    if meta_files := bevformer.cases(directory):
        return {path.name.removesuffix("_meta.json"): partial(bevformer.compare, path) for path in meta_files}
    missing = [name for name in FOLDERS if not (directory / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{directory} has no case: expected files <cfg>_s<seed>_meta.json, or the folders "
            f"{', '.join(FOLDERS)} (missing: {', '.join(missing)})"
        )
    return {title: partial(compare, directory) for title, compare in MONOCULAR.items()}


def run(title: str, check: Check) -> bool:
    """Runs one check and prints its table; returns whether it passed."""
    try:
        rows = check()
    # A damaged file, a missing array, or shapes that do not fit each other: the other checks still run.
    except (OSError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"error: {title}: {error}", file=sys.stderr)
        return False
    print(f"\n{title}\n{table(rows)}", flush=True)
    return bool(rows) and not any(row.failed for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Verifies everything in a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    try:
        checks = checks_of(parser.parse_args(argv).directory)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    passed = [run(title, check) for title, check in checks.items()]
    print(f"\n{len(checks)} cases: {'all within tolerance' if all(passed) else 'FAILED'}")
    return int(not all(passed))
