"""FGD: masks, attention, losses and gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bevkd2.distill.masks import draw_masks
from bevkd2.distill.methods.feature import attention_of, spatial_attention
from bevkd2.distill.methods.fgd import FGD
from bevkd2.modeling import Knowledge
from bevkd2.ops import absolute_means
from tests.golden.kd_case import (
    Case,
    RecordedObjects,
    build,
    cases_of,
    gradients,
    leaves,
    load,
    shapes_of,
    total,
)
from tests.golden.report import Differences, Row

# The masks are drawn in float32.
_RELATIVE = 1e-6
_GRADIENT = 1e-5
_FLOOR = 1e-9
_STRIDE = 8  # any: the recorded code divides the boxes by the sizes of the maps
_CONTEXT_LAYERS = (0, 1, 3)


def compare(directory: Path) -> list[Row]:
    """Rows of kd/fgd_losses.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.
    """
    arrays = load(directory / "kd" / "fgd_losses.npz")
    quantities = ("masks", "attention", "foreground", "background", "attention loss", "relation loss", "loss")
    tolerances = {f"FGD: {name}": _RELATIVE for name in quantities} | {"FGD: gradient": _GRADIENT}
    differences = Differences(tolerances)
    for case in cases_of(arrays, "feat_s"):
        _compare(differences, arrays, case)
    return differences.rows()


def _compare(differences: Differences, arrays: Case, case: str) -> None:
    golden = {
        key.removeprefix(f"{case}/"): value for key, value in arrays.items() if key.startswith(f"{case}/")
    }
    (student,), teacher = leaves([golden["feat_s"]]), golden["feat_t"]
    objects, sizes = _objects(arrays, student)
    method = _method(golden)
    known = [Knowledge(fpn=[maps], fpn_strides=[_STRIDE], image_sizes=sizes) for maps in (student, teacher)]

    shape = (student.shape[2], student.shape[3])
    for kind, name in (("foreground", "mask_fg"), ("background", "mask_bg")):
        (mask,) = draw_masks(
            method.sources, [shape], known[0], objects, kind, normalize=True, rounding="outward"
        )
        differences.add_close("FGD: masks", mask, golden[name], _FLOOR)
    temperature = method.temperature
    adapted = method.adapters[0](student)
    for name, ours in (
        ("S_t", spatial_attention(teacher, temperature)),
        ("C_t", attention_of(absolute_means(teacher).channels, temperature)),
        ("S_s", spatial_attention(adapted, temperature)),
        ("C_s", attention_of(absolute_means(adapted).channels, temperature)),
    ):
        differences.add_close("FGD: attention", ours, golden[name], _FLOOR)

    parts = method(*known, objects)  # of weight 1 each
    differences.add_close("FGD: attention loss", parts["fgd_attention"], golden["mask_loss_f64"], _FLOOR)
    differences.add_close("FGD: relation loss", parts["fgd_relation"], golden["rela_loss_f64"], _FLOOR)
    for name, key, weights in (
        ("foreground", "fg_loss_f64", (1.0, 0.0)),
        ("background", "bg_loss_f64", (0.0, 1.0)),
    ):
        method.foreground, method.background = weights
        focal = method(*known, objects)["fgd_focal"]
        differences.add_close(f"FGD: {name}", focal, golden[key], _FLOOR)

    for name, weight in _WEIGHTS.items():
        setattr(method, name, float(golden[f"hyper/{weight}"]))
    loss = total(method(*known, objects))
    differences.add_close("FGD: loss", loss, golden["loss_f64"], _FLOOR)
    (gradient,) = gradients(loss, [student])
    scale = float(golden["grad_feat_s"].abs().max())
    differences.add("FGD: gradient", gradient, golden["grad_feat_s"], scale)


def _objects(arrays: Case, student: Tensor) -> tuple[RecordedObjects, Tensor]:
    """Boxes that fall on the cells of the recorded ones, and sizes of images without padding.

    The recorded code divides boxes by the size of the image without its padding and multiplies by the size
    of the map; this package divides by the stride, and leaves the padding out.
    """
    rows, _, height, width = student.shape
    boxes = []
    for row in range(rows):
        image_height, image_width = arrays[f"img_shape/{row}"][:2].tolist()
        scale = torch.tensor([image_width, image_height, image_width, image_height], dtype=torch.float32)
        cells = torch.tensor([width, height, width, height])
        # In single precision, in which the recorded code rounds.
        boxes.append(arrays[f"gt_bboxes/{row}"].float() / scale * cells * _STRIDE)
    sizes = torch.tensor([[float(height * _STRIDE), float(width * _STRIDE)]]).expand(rows, 2)
    return RecordedObjects(boxes), sizes


def _method(golden: Case) -> FGD:
    """The method with the recorded parameters; its losses have weight 1."""
    channels, channels_t = golden["feat_s"].shape[1], golden["feat_t"].shape[1]
    method: FGD = build(
        "FGD",
        shapes_of([(channels, _STRIDE)]),
        shapes_of([(channels_t, _STRIDE)]),
        TEMPERATURE=float(golden["hyper/temp"]),
        ATTENTION_WEIGHT=1.0,
        RELATION_WEIGHT=1.0,
    )
    state = {}
    for role, letter in (("student", "s"), ("teacher", "t")):
        names = {"mask": f"conv_mask_{letter}"}
        names |= {f"transform.{i}": f"channel_add_conv_{letter}.{i}" for i in _CONTEXT_LAYERS}
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                state[f"blocks.0.{role}.{ours}.{kind}"] = golden[f"param/{theirs}.{kind}"]
    if "param/align.weight" in golden:
        state |= {f"adapters.0.{kind}": golden[f"param/align.{kind}"] for kind in ("weight", "bias")}
    method.load_state_dict(state)
    return method


_WEIGHTS = {
    "foreground": "alpha_fgd",
    "background": "beta_fgd",
    "attention": "gamma_fgd",
    "relation": "lambda_fgd",
}
"""Attributes of the method, by the recorded names of its weights."""
