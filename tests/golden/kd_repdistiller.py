"""The losses of RepDistiller: KD, FitNet, AT, SP, RKD and VID, and their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bevkd2.modeling import Knowledge
from bevkd2.ops import class_distance
from tests.golden.kd_case import Case, build, gradients, leaves, load, shapes_of, total
from tests.golden.report import Differences, Row

_RELATIVE = 1e-9
_MASKED = 1e-7  # cells are counted in float32
_FLOOR = 1e-12
_REGRESSOR_LAYERS = (0, 2, 4)
_METHODS = ("KD", "FitNet", "AT", "SP", "RKD", "VID")


def compare(directory: Path) -> list[Row]:
    """Rows of kd/repdistiller_losses.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.
    """
    arrays = load(directory / "kd" / "repdistiller_losses.npz")
    tolerances = {name: _MASKED if name in ("FitNet", "VID") else _RELATIVE for name in _METHODS}
    tolerances |= {f"{name}, gradients": 1e-6 for name in _METHODS}
    differences = Differences(tolerances)
    _compare_kd(differences, arrays)
    fs, ft, fs2, ft2 = (arrays[f"feat/{name}"] for name in ("fs", "ft", "fs2", "ft2"))
    embeddings = [arrays[f"feat/emb_{letter}"][:, :, None, None] for letter in ("s", "t")]
    _compare(differences, arrays, "FitNet", "fitnet/hint_mse", fs, ft, ADAPTER="none")
    _compare(differences, arrays, "AT", "at/same_size", fs, ft)
    _compare(differences, arrays, "AT", "at/diff_size", fs2, ft2, pooled=True)
    _compare(differences, arrays, "SP", "sp/same", fs, ft)
    _compare(differences, arrays, "SP", "sp/diff", fs2, ft2)
    weights = {"DISTANCE_WEIGHT": 25.0, "ANGLE_WEIGHT": 50.0}
    _compare(differences, arrays, "RKD", "rkd/total_wd25_wa50", *embeddings, **weights)
    for case, absent in (("distance_only", "ANGLE_WEIGHT"), ("angle_only", "DISTANCE_WEIGHT")):
        _compare(differences, arrays, "RKD", f"rkd/{case}", *embeddings, **(_ONE_EACH | {absent: 0.0}))
    _compare(differences, arrays, "VID", "vid/same", fs, ft)
    _compare(differences, arrays, "VID", "vid/diff", fs2, ft2, pooled=True)
    return differences.rows()


def _compare_kd(differences: Differences, arrays: Case) -> None:
    for key in sorted(key for key in arrays if key.startswith("kd/T") and key.endswith("/loss_f64")):
        case = key.removesuffix("/loss_f64")
        (student,) = leaves([arrays["kd/logits_s"]])
        temperature = float(case.removeprefix("kd/T"))
        loss = class_distance(student, arrays["kd/logits_t"], "softmax_kl", temperature).mean()
        _add(differences, "KD", arrays, case, loss, gradients(loss, [student])[0])


def _compare(
    differences: Differences,
    arrays: Case,
    method: str,
    case: str,
    student: Tensor,
    teacher: Tensor,
    *,
    pooled: bool = False,
    **settings: Any,
) -> None:
    """Compares one loss and its gradient.

    Args:
        differences: gets them.
        arrays: the recording.
        method: its name in the registry.
        case: the prefix of its arrays.
        student: (B, C, h, w).
        teacher: likewise.
        pooled: average the larger maps to the size of the smaller first, as the recorded code does.
        **settings: keys of the method's node.
    """
    (leaf,) = leaves([student])
    maps = [leaf, teacher]
    if pooled:
        size = min(student.shape[2], teacher.shape[2])
        maps = [
            F.adaptive_avg_pool2d(features, size) if features.shape[2] > size else features
            for features in maps
        ]
    shapes = (shapes_of([(features.shape[1], 1)]) for features in maps)
    built = build(method, *shapes, **settings)
    if method == "VID":
        state = {
            f"regressors.0.{i}.weight": arrays[f"{case}/param/regressor.{i}.weight"]
            for i in _REGRESSOR_LAYERS
        }
        built.load_state_dict(state | {"log_scales.0": arrays[f"{case}/param/log_scale"]})
    sizes = torch.tensor([[float(n) for n in maps[0].shape[2:]]]).expand(len(leaf), 2)
    known = [Knowledge(fpn=[features], fpn_strides=[1], image_sizes=sizes) for features in maps]
    loss = total(built(*known, None))
    (gradient,) = gradients(loss, [leaf])
    _add(differences, method, arrays, case, loss, gradient.view(arrays[f"{case}/grad_s"].shape))
    if method == "VID":
        (scale,) = gradients(loss, list(built.log_scales))
        golden = arrays[f"{case}/grad_log_scale"]
        differences.add("VID, gradients", scale, golden, float(golden.abs().max()))


def _add(
    differences: Differences, name: str, arrays: Case, case: str, loss: Tensor, gradient: Tensor
) -> None:
    golden = arrays[f"{case}/grad_s"]
    differences.add_close(name, loss, arrays[f"{case}/loss_f64"], _FLOOR)
    differences.add(f"{name}, gradients", gradient, golden, max(float(golden.abs().max()), 1e-30))


_ONE_EACH = {"DISTANCE_WEIGHT": 1.0, "ANGLE_WEIGHT": 1.0}
