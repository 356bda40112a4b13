"""BEVFormer against recorded numbers of the published code.

A folder holds cases ``<cfg>_s<seed>_{meta.json,weights.npz,in.npz,out.npz,attn.npz}``. Every case's weights
go through this package's importer, its features through encoder, decoder, losses and decoding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bevkd2.checkpoint.import_bevformer import to_published
from bevkd2.modeling import BEVFormer
from bevkd2.modeling.bev.box_coder import (
    DecodeOptions,
    decode_detections,
    encode_boxes,
    from_mmdet3d,
    to_mmdet3d,
)
from bevkd2.modeling.bev.geometry import (
    grid_shift,
    pillar_points,
    project_pillars,
    rotation_source_index,
)
from bevkd2.structures import wrap_angle
from tests.golden.bevformer_case import Case, FrameRun, build, load_case, run_frame
from tests.golden.report import Differences, Row

# Absolute, in float32; metres for boxes, relative to the largest number for decoded boxes. Gradients:
# relative L2 over a tensor, as offsets' gradients jump where a location crosses a pixel.
TOLERANCES = {
    "reference points": 1e-4,
    "BEV position": 1e-6,
    "shift": 1e-6,
    "rotation index": 0,
    "rotated BEV": 1e-4,
    "camera visibility": 0,
    "visible cells per camera": 0,
    "BEV queries": 1e-4,
    "encoder layers": 1e-4,
    "BEV embedding": 1e-4,
    "temporal attention weights": 5e-5,
    "spatial attention weights": 5e-5,
    "decoder attention weights": 1e-4,
    "decoder layers": 5e-4,
    "decoder references": 5e-5,
    "class scores": 5e-4,
    "boxes": 5e-3,
    "target codes": 1e-5,
    "matching cost": 1e-4,
    "assignment": 0,
    "losses": 1e-5,
    "decoded boxes": 1e-4,
    "decoded scores": 1e-6,
    "decoded labels": 0,
    "gradients": 2e-2,
    "gradient norms": 2e-2,
}


# A case without a recording of one of these proves nothing about it, and fails.
REQUIRED = (
    "BEV embedding",
    "temporal attention weights",
    "spatial attention weights",
    "class scores",
    "boxes",
    "losses",
    "assignment",
    "decoded boxes",
    "decoded scores",
    "decoded labels",
)


def compare_geometry(model: BEVFormer, case: Case, diff: Differences) -> None:
    """What does not depend on a frame."""
    geometry = model.geometry
    points = pillar_points(
        geometry.bev_shape, geometry.pc_range, geometry.num_pillar_points, torch.device("cpu")
    )
    low, high = torch.tensor(geometry.pc_range).chunk(2)
    diff.add("reference points", ((points - low) / (high - low)).transpose(0, 1), case.out["out/ref_3d"])
    diff.add("BEV position", model.bev_position(), case.out["out/bev_pos"])


def compare_frame(model: BEVFormer, case: Case, index: int, run: FrameRun, diff: Differences) -> None:
    """Geometry, encoder and decoder of one frame."""
    prefix, out = f"out/f{index}/", case.out
    geometry, frames = model.geometry, run.frames
    shift = grid_shift(run.motion, geometry.pc_range) * float(geometry.use_shift)
    diff.add("shift", shift, out[f"{prefix}shift"])
    points = pillar_points(geometry.bev_shape, geometry.pc_range, geometry.num_pillar_points, shift.device)
    projected, visible = project_pillars(points, frames.lidar2img, frames.image_sizes, frames.padded_size)
    mask = out[f"{prefix}bev_mask"].bool().transpose(0, 1)
    diff.add("camera visibility", visible, mask)
    diff.add("reference points", projected[mask], out[f"{prefix}reference_points_cam"].transpose(0, 1)[mask])
    queries = run.seen["encoder.layers.0.temporal_attention.input"]
    diff.add("BEV queries", queries, out[f"{prefix}bev_query_in"].transpose(0, 1))
    diff.add("BEV embedding", run.encoded.bev_embed, out[f"{prefix}bev_embed"].transpose(0, 1))
    for key, golden in out.items():
        if key.startswith(prefix):
            compare_layer(run, key.removeprefix(prefix), golden, diff)
    decoded = run.decoded
    diff.add("class scores", decoded.class_logits, out[f"{prefix}all_cls_scores"])
    diff.add("boxes", decoded.box_codes, out[f"{prefix}all_bbox_preds"])
    diff.add("decoder layers", torch.stack(decoded.states), out[f"{prefix}inter_states"].transpose(1, 2))
    diff.add("decoder references", decoded.reference_points[0], out[f"{prefix}init_reference"])
    diff.add(
        "decoder references", torch.stack(decoded.reference_points[1:]), out[f"{prefix}inter_references"]
    )


def compare_layer(run: FrameRun, key: str, golden: Tensor, diff: Differences) -> None:
    """One recorded layer output, ``enc0``, ``enc0/tsa_out``, ``dec0/self_attn_out`` and so on."""
    match = re.fullmatch(r"(enc|dec)(\d+)(?:/(\w+))?", key)
    if not match:
        return
    part, layer, what = match.groups()
    root = f"encoder.layers.{layer}" if part == "enc" else f"decoder.layers.{layer}"
    name = {
        None: root,
        "tsa_out": f"{root}.temporal_attention",
        "sca_out": f"{root}.spatial_attention",
        "self_attn_out": f"{root}.self_norm.input",
        "cross_attn_out": f"{root}.cross_attention",
    }[what]
    golden = golden.transpose(0, 1) if part == "dec" else golden
    diff.add("encoder layers" if part == "enc" else "decoder layers", run.seen[name], golden)


def compare_rotation(
    model: BEVFormer, case: Case, run: FrameRun, previous: Tensor, diff: Differences
) -> None:
    """How frame 1 turns the BEV of frame 0."""
    geometry = model.geometry
    index = rotation_source_index(run.motion[:, 17], geometry.bev_shape, geometry.rotate_center)
    diff.add("rotation index", index, case.out["out/f1/rotate_src_index"])
    rotated = case.out["out/f1/prev_bev_rotated"].transpose(0, 1)
    diff.add("rotated BEV", geometry.align(previous, run.motion), rotated)


def compare_attention(case: Case, index: int, run: FrameRun, diff: Differences) -> None:
    """Attention weights: temporal by queue, spatial at the cells that each camera sees."""
    for key, golden in case.attn.items():
        match = re.fullmatch(rf"f{index}/(?:(?:enc|dec)(\d+)/)?(\w+)/b(\d+)", key)
        if not match:
            continue
        layer, what, b = int(match[1] or 0), match[2], int(match[3])
        if what == "tsa_attn":
            ours = run.encoded.costly["temporal_attention"][layer][b].permute(2, 0, 1, 3, 4)
            diff.add("temporal attention weights", ours, golden)
        elif what == "sca_attn":
            cells = case.attn[f"f{index}/sca_index/b{b}"].long()
            ours = run.encoded.costly["spatial_attention"][layer][b][cells.clamp(min=0)]
            used = cells >= 0
            diff.add("spatial attention weights", ours[used], golden[used])
        elif what == "cross_attn":
            logits = run.seen[f"decoder.layers.{layer}.cross_attention.attention_weights"][b : b + 1]
            ours = logits.view(*golden.shape[:3], -1).softmax(-1).view(golden.shape)
            diff.add("decoder attention weights", ours, golden)
        elif what == "sca_index":
            seen = torch.zeros_like(run.pairs.bev_mask[b])
            for camera, cells in enumerate(golden.long()):
                seen[camera, cells[cells >= 0]] = True
            diff.add("visible cells per camera", run.pairs.bev_mask[b], seen)


def compare_losses(model: BEVFormer, case: Case, run: FrameRun, diff: Differences) -> None:
    """Targets, matching and losses of the recorded predictions; gradients of the model's own."""
    out, counts = case.out, case.inputs["in/gt_count"].tolist()
    gravity = zip(case.inputs["in/gt_boxes_gravity"], counts, strict=True)
    boxes = [from_mmdet3d(b[:n], bottom=False) for b, n in gravity]
    labels = [b[:n].long() for b, n in zip(case.inputs["in/gt_labels"], counts, strict=True)]
    codes = [encode_boxes(b) for b in boxes]
    for b, n in enumerate(counts):
        diff.add("target codes", codes[b], out["loss/gt_normalized"][b, :n])
    logits, predicted = out["out/f1/all_cls_scores"], out["out/f1/all_bbox_preds"]
    matches = model.criterion.matcher(logits, predicted, labels, codes)
    for layer, pairs in enumerate(matches):
        for b, (queries, objects) in enumerate(pairs):
            cost = model.criterion.matcher.cost(logits[layer, b], predicted[layer, b], labels[b], codes[b])
            diff.add("matching cost", cost, out[f"loss/L{layer}/cost"][b, :, : counts[b]])
            assigned = torch.zeros(logits.shape[2], dtype=torch.long)
            assigned[queries] = objects + 1
            diff.add("assignment", assigned, out[f"loss/L{layer}/gt_inds"][b])
    losses = published_losses(model.criterion(logits, predicted, labels, codes))
    for name, value in losses.items():
        diff.add("losses", value, out[f"loss/{name}"])
    diff.add("losses", torch.stack(list(losses.values())).sum(), out["loss/total"])
    own = model.criterion(run.decoded.class_logits, run.decoded.box_codes, labels, codes)
    compare_gradients(model, case, sum(own.values()), diff)


def published_losses(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The losses by their published names: ``loss_box_0`` is ``d0.loss_bbox``."""
    renamed = {}
    for name, value in losses.items():
        kind, _, layer = name.removeprefix("loss_").partition("_")
        published = {"cls": "loss_cls", "box": "loss_bbox"}[kind]
        renamed[f"d{layer}.{published}" if layer else published] = value
    return renamed


def compare_gradients(model: BEVFormer, case: Case, total: Tensor, diff: Differences) -> None:
    """Gradients of frame 1's total loss by parameter."""
    model.zero_grad()
    total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    grads = to_published(grads)
    for key, golden in case.out.items():
        if key.startswith("grad/"):
            ours = grads[key.removeprefix("grad/")]
            error = (ours - golden).norm() / golden.norm().clamp(min=1e-6)
            diff.add("gradients", error, torch.zeros(()))
    norms = case.out.get("grad_norm", torch.zeros(0))
    for key, golden in zip(case.meta.get("grad_norm_keys", ()), norms, strict=True):
        diff.add("gradient norms", grads[key].norm(), golden, max(float(golden), 1e-6))


def compare_decoding(case: Case, diff: Differences) -> None:
    """Detections of the recorded predictions, under every recorded setting."""
    logits, codes = case.out["out/f1/all_cls_scores"][-1], case.out["out/f1/all_bbox_preds"][-1]
    for variant, setting in case.meta["decode_variants"].items():
        for b in range(len(logits)):
            options = DecodeOptions(
                max_detections=case.meta["decode_max_num"],
                score_threshold=setting["thr"] or 0.0,
                post_center_range=setting["post"],
            )
            detections = decode_detections(logits[b], codes[b], options)
            boxes, scores, labels = (detections[key] for key in ("boxes", "scores", "labels"))
            prefix = f"decode_{variant}/b{b}/"
            diff.add("decoded scores", scores, case.out[f"{prefix}scores"])
            diff.add("decoded labels", labels, case.out[f"{prefix}labels"])
            for bottom, key in ((False, "boxes_gravity"), (True, "boxes_bottom")):
                golden = case.out[f"{prefix}{key}"].clone()
                ours = to_mmdet3d(boxes, bottom=bottom)
                if ours.shape == golden.shape:  # yaws are equal modulo a turn
                    golden[:, 6] = ours[:, 6] + wrap_angle(golden[:, 6] - ours[:, 6])
                scale = max(1.0, float(golden.abs().max())) if golden.numel() else 1.0
                diff.add("decoded boxes", ours, golden, scale)


def verify(case: Case) -> Differences:
    """Runs one case and returns its differences."""
    diff = Differences(TOLERANCES, required=REQUIRED)
    model = build(case)
    with torch.no_grad():
        first = run_frame(model, case, 0, None)
    previous = first.encoded.bev_embed
    second = run_frame(model, case, 1, previous)
    with torch.no_grad():
        compare_geometry(model, case, diff)
        for index, run in enumerate((first, second)):
            compare_frame(model, case, index, run, diff)
            compare_attention(case, index, run, diff)
        compare_rotation(model, case, second, previous, diff)
        compare_decoding(case, diff)
    compare_losses(model, case, second, diff)
    return diff


def cases(directory: Path) -> list[Path]:
    """The cases of a folder, by their meta files."""
    return sorted(directory.glob("*_s*_meta.json"))


def compare(meta_path: Path) -> list[Row]:
    """Verifies one case.

    Raises:
        FileNotFoundError: a part of the case is missing.
        KeyError, ValueError: the case is not as expected.
    """
    return verify(load_case(meta_path)).rows()
