"""What holds for every method of features alike: images without objects, 16 bits, padding, settings."""

from __future__ import annotations

import pytest
import torch

from bevkd2.modeling import Knowledge
from tests.distill.methods.random_maps import SIZE, build, knowledge, targets, total

METHODS = ("AT", "DeFeat", "FBKD", "FGD", "FGFI", "FitNet", "RKD", "SP", "TAR", "VID")
MASKED = ("AT", "DeFeat", "FGFI", "FitNet", "RKD", "TAR", "VID")


def cast(known: Knowledge, dtype: torch.dtype) -> Knowledge:
    maps = [level.detach().to(dtype).requires_grad_() for level in known.fpn]
    return Knowledge(fpn=maps, fpn_strides=known.fpn_strides, image_sizes=known.image_sizes)


@pytest.mark.parametrize("name", METHODS)
def test_double_precision_stays(name: str) -> None:
    loss = total(build(name)(knowledge(4, 1, 3), knowledge(6, 2, 3), targets(3)))
    assert loss.dtype == torch.float64 and loss.isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_images_without_objects_give_finite_losses_and_gradients(name: str) -> None:
    student = knowledge(4, 1, 3)
    loss = total(build(name)(student, knowledge(6, 2, 3), targets(3, [])))
    loss.backward()
    assert loss.isfinite() and all(level.grad.isfinite().all() for level in student.fpn)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_16_bits_give_float32_losses_and_finite_gradients(name: str, dtype: torch.dtype) -> None:
    method = build(name).float()
    student, teacher = cast(knowledge(4, 1, 3), dtype), cast(knowledge(6, 2, 3), dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = total(method(student, teacher, targets(3)))
    loss.backward()
    exact = total(build(name)(knowledge(4, 1, 3), knowledge(6, 2, 3), targets(3))).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05, abs=1e-3 * abs(exact) + 1e-6)
    assert all(level.grad.isfinite().all() for level in student.fpn)


@pytest.mark.parametrize("name", MASKED)
def test_padding_does_not_count(name: str) -> None:
    sizes = [(32.0, 48.0)] * 3  # of 48 x 64 padded pixels: whole cells of both levels
    method = build(name, **({"ADAPTER": "conv1x1"} if name in ("DeFeat", "FGFI", "TAR") else {}))
    losses = []
    for value in (0.0, 50.0):
        student, teacher = knowledge(4, 1, 3, sizes), knowledge(6, 2, 3, sizes)
        with torch.no_grad():
            for level, stride in zip(student.fpn, student.fpn_strides, strict=True):
                level[:, :, int(32 / stride) :] += value
                level[:, :, :, int(48 / stride) :] += value
        losses.append(total(method(student, teacher, targets(3))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] != 0


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("AT", "POWER", 0.0),
        ("DeFeat", "HEAD", "on"),
        ("DeFeat", "HEAD", "always"),
        ("DeFeat", "CLASS_DISTANCE", "l3"),
        ("DeFeat", "TEMPERATURE", 0.0),
        ("FBKD", "TEMPERATURE", -1.0),
        ("FGD", "TEMPERATURE", 0.0),
        ("FGD", "ADAPTER", "none"),
        ("FGFI", "THRESHOLD", 1.0),
        ("FGFI", "ANCHOR_SCALE", 0.0),
        ("FGFI", "ANCHOR_RATIOS", []),
        ("FitNet", "ADAPTER", "none"),
        ("TAR", "HEAD", "on"),
        ("TAR", "FEATURE_DECAY", 2.0),
        ("VID", "INITIAL_VARIANCE", 0.0),
    ],
)
def test_settings_that_cannot_be_are_errors_that_name_the_key(name: str, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"DISTILL\.{name.upper()}.*{key.split('_')[0]}"):
        build(name, **{key: value})


@pytest.mark.parametrize(("name", "rows", "least"), [("SP", 1, 2), ("RKD", 2, 3)])
def test_a_batch_too_small_for_relations_is_an_error_that_names_the_batch(
    name: str, rows: int, least: int
) -> None:
    with pytest.raises(ValueError, match=rf"SOLVER\.IMS_PER_BATCH to {least} times"):
        build(name)(knowledge(4, 1, rows), knowledge(6, 2, rows), targets(rows))


def test_the_images_of_this_file_have_no_padding() -> None:
    assert SIZE == (6 * 8.0, 8 * 8.0) == (3 * 16.0, 4 * 16.0)
