"""Pixel weights, against the reference and against values by hand."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import BoxMask, Occlusion, Perspective, draw_weights, feature_l2, pack_boxes
from tests.ops.references import draw_weights_reference

SHAPES, STRIDES = ((13, 22), (7, 11), (2, 3)), (8, 16, 64)
SIZES = torch.tensor([[100.0, 170.0], [104.0, 176.0], [61.0, 90.0]])
GRID = {"level_shapes": ((20, 30),), "grid_range": (-15.0, -10.0, 15.0, 10.0)}
KINDS = [
    ("foreground", False),
    ("foreground", True),
    ("background", False),
    ("background", True),
    ("gaussian", False),
]


def pixel_boxes(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns x1, y1, x2, y2 of three samples, the second without boxes; some reach beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in (6, 0, 3):
        center = torch.rand(count, 2, generator=generator) * torch.tensor([180.0, 110.0])
        half = torch.rand(count, 2, generator=generator) * 30 + 1
        boxes.append(torch.cat([center - half, center + half], 1))
    return pack_boxes(boxes)


def bev_boxes(seed: int = 0, batch: tuple[int, ...] = (7, 0, 2)) -> tuple[Tensor, Tensor]:
    """Returns x, y, length, width, angle in metres, of any size; some boxes lie outside of the grid."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in batch:
        center = (torch.rand(count, 2, generator=generator) - 0.5) * torch.tensor([36.0, 24.0])
        size = torch.rand(count, 2, generator=generator) * 6 + 0.1
        angle = (torch.rand(count, 1, generator=generator) - 0.5) * 7
        boxes.append(torch.cat([center, size, angle], 1))
    return pack_boxes(boxes)


def assert_equal(arguments: dict[str, Any]) -> None:
    actual, expected = draw_weights(**arguments), draw_weights_reference(**arguments)
    torch.testing.assert_close(actual.maps, expected.maps, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(actual.sums, expected.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.cells, expected.cells)


def image(**parts: Any) -> dict[str, Any]:
    return {"level_shapes": SHAPES, "strides": STRIDES, "image_sizes": SIZES, **parts}


@pytest.mark.parametrize(
    "perspective",
    [None, Perspective(), Perspective(1.0, (0.2, 0.9), (0.3, 0.6))],
    ids=["none", "paper", "other"],
)
def test_perspective_and_occlusion_match_the_reference(perspective: Perspective | None) -> None:
    assert_equal(image(perspective=perspective))
    boxes, splits = pixel_boxes()
    depths = torch.linspace(1, 30, len(boxes))
    assert_equal(image(perspective=perspective, occlusion=Occlusion(boxes, splits, depths, 20.0)))


@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_boxes_on_images_match_the_reference(kind: Any, normalize: bool) -> None:
    for seed in range(3):
        mask = BoxMask(*pixel_boxes(seed), kind=kind, normalize=normalize)
        assert_equal(image(boxes=[mask]))
        assert_equal({"level_shapes": SHAPES, "strides": STRIDES, "boxes": [mask]})


@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_rotated_boxes_on_a_bev_grid_match_the_reference(kind: Any, normalize: bool) -> None:
    for seed in range(3):
        assert_equal(
            {**GRID, "boxes": [BoxMask(*bev_boxes(seed), kind=kind, normalize=normalize, alpha=0.8)]}
        )


def test_weights_are_the_product_of_the_parts() -> None:
    boxes, splits = pixel_boxes()
    everything = image(
        perspective=Perspective(),
        occlusion=Occlusion(boxes, splits, torch.linspace(1, 30, len(boxes)), 20.0),
        boxes=[
            BoxMask(boxes, splits, "gaussian", alpha=3.0),
            BoxMask(*pixel_boxes(1), "background", normalize=True),
        ],
    )
    assert_equal(everything)
    product = torch.ones(())
    for part in ("perspective", "occlusion"):
        product = product * draw_weights(**image(**{part: everything[part]})).maps
    for mask in everything["boxes"]:
        product = product * draw_weights(**image(boxes=[mask])).maps
    torch.testing.assert_close(draw_weights(**everything).maps, product)


def test_box_masks_equal_masks_by_hand() -> None:
    boxes, splits = pack_boxes([torch.tensor([[8.0, 8.0, 24.0, 16.0], [16.0, 8.0, 32.0, 24.0]])])
    grid = {"level_shapes": [(4, 5)], "strides": [8]}

    def drawn(**options: Any) -> Tensor:
        return draw_weights(**grid, boxes=[BoxMask(boxes, splits, **options)]).levels()[0][0]

    inside = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).float()
    assert torch.equal(drawn(), inside)
    assert torch.equal(drawn(kind="background"), 1 - inside)
    by_area = torch.tensor([[0, 0, 0, 0, 0], [0, 2, 2, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]) / 4
    assert torch.equal(drawn(normalize=True), by_area)
    torch.testing.assert_close(drawn(kind="background", normalize=True), (1 - inside) / 15)


def test_gaussian_equals_values_by_hand() -> None:
    boxes, splits = pack_boxes([torch.tensor([[5.5, 2.5, 12.0, 6.0, math.pi / 2]])])
    weights = draw_weights(
        [(9, 11)], grid_range=(0.0, 0.0, 11.0, 9.0), boxes=[BoxMask(boxes, splits, "gaussian")]
    ).levels()[0][0]
    assert weights[2, 5] == 1
    assert weights[4, 5].item() == pytest.approx(math.exp(-(2**2) / 2 / 2**2))  # sigma is 12 / 6 along y
    assert weights[2, 7].item() == pytest.approx(math.exp(-(2**2) / 2 / 1**2))  # and 6 / 6 along x
    assert weights[8, 5].item() == pytest.approx(math.exp(-(3**2) / 2))
    assert weights[2, 9] == 0  # 4 sigma


def test_small_objects_cover_a_cell_on_a_coarse_level() -> None:
    boxes, splits = pack_boxes([torch.tensor([[65.0, 3.0, 67.0, 5.0]])])
    for kind, normalize in KINDS:
        mask = BoxMask(boxes, splits, kind=kind, normalize=normalize)  # type: ignore[arg-type]
        weights = draw_weights([(2, 3)], strides=[64], boxes=[mask]).levels()[0][0]
        assert weights[0, 1] == (0 if kind == "background" else 1), kind


def test_boxes_of_non_finite_numbers_give_finite_weights() -> None:
    nan, inf = float("nan"), float("inf")
    strange = torch.tensor(
        [
            [nan, 0, 1, 1, 0],
            [3, nan, 1, 1, 0],
            [3, 3, nan, 2, 0],
            [3, 3, 2, 2, nan],
            [3e30, 3, 2, 2, 0],
            [0, 0, -2, 2, 0],
        ]
    )
    for kind in ("foreground", "gaussian"):
        weights = draw_weights(**GRID, boxes=[BoxMask(*pack_boxes([strange]), kind=kind)]).maps  # type: ignore[arg-type]
        assert bool(weights.isfinite().all())
    everywhere, splits = pack_boxes([torch.tensor([[0.0, 0.0, inf, inf, 0.3]])])
    assert bool((draw_weights(**GRID, boxes=[BoxMask(everywhere, splits)]).maps == 1).all())


def test_sums_and_cells_are_those_of_the_levels() -> None:
    weights = draw_weights(**image(perspective=Perspective()))
    for level, total, cells, stride in zip(
        weights.levels(), weights.sums, weights.cells, STRIDES, strict=True
    ):
        torch.testing.assert_close(level.sum((1, 2)), total)
        assert cells.tolist() == [math.ceil(h / stride) * math.ceil(w / stride) for h, w in SIZES.tolist()]


def test_feature_l2_accepts_the_maps_and_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = draw_weights(**image(perspective=Perspective()))
    student, teacher = (
        [torch.randn(3, 4, *shape, generator=generator) for shape in SHAPES] for _ in range(2)
    )
    losses = feature_l2(student, teacher, weights.maps, weights.cells, loss_weight=0.5)
    for s, t, w, cells, loss in zip(student, teacher, weights.levels(), weights.cells, losses, strict=True):
        torch.testing.assert_close(loss, 0.5 * feature_l2(s, t, w, cells))


def raw() -> tuple:
    (boxes, splits), grid = bev_boxes(), [-15.0, -10.0, 1.0, 1.0]
    return None, 3, [20, 30], grid, [], [boxes, boxes], [splits, splits], [1, 4], [1.0, 0.5]


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.bevkd2.draw_weights, raw())
    shapes = [size for shape in SHAPES for size in shape]
    geometry = [number for stride in STRIDES for number in (0.0, 0.0, stride, stride)]
    arguments = (SIZES, 3, shapes, geometry, [0.3, 0.7, 0.7, 0.5, 0.5], [], [], [], [])
    torch.library.opcheck(torch.ops.bevkd2.draw_weights, arguments)


def test_compiles_in_one_graph_with_dynamic_shapes() -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def draw(boxes: Tensor, splits: Tensor) -> Tensor:
        return draw_weights(**GRID, boxes=[BoxMask(boxes, splits, "gaussian")]).maps * 2

    for batch in ((7, 0, 2), (3, 4)):
        boxes, splits = bev_boxes(batch=batch)
        expected = 2 * draw_weights(**GRID, boxes=[BoxMask(boxes, splits, "gaussian")]).maps
        assert torch.equal(draw(boxes, splits), expected)


def test_bitwise_the_same_for_any_number_of_threads() -> None:
    mask = BoxMask(*pixel_boxes(), "background", normalize=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(draw_weights(**image(perspective=Perspective(), boxes=[mask])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other.maps, results[0].maps) and torch.equal(other.sums, results[0].sums)


def test_empty_batches_and_samples_without_boxes() -> None:
    nothing = draw_weights([(3, 4)], strides=[8], image_sizes=torch.zeros(0, 2))
    assert nothing.maps.shape == (0, 12) and nothing.sums.shape == (1, 0)
    boxes, splits = pack_boxes([torch.zeros(0, 5)] * 2)
    assert not draw_weights(**GRID, boxes=[BoxMask(boxes, splits)]).maps.any()
    assert bool((draw_weights(**GRID, boxes=[BoxMask(boxes, splits, "background")]).maps == 1).all())


BOXES, SPLITS = torch.zeros(2, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level_shapes": []}, "level_shapes is empty"),
        (
            {"grid_range": (0, 0, 1, 1)},
            "give strides (levels of an image) or grid_range (a BEV grid), and only one",
        ),
        ({"strides": [8, 16]}, "strides are [8, 16]; expected 1 above 0"),
        ({"strides": None, "grid_range": (0, 0, -1, 1)}, "grid_range is (0, 0, -1, 1)"),
        ({"boxes": []}, "nothing to draw from"),
        ({"perspective": Perspective()}, "perspective needs image_sizes"),
        ({"image_sizes": torch.ones(2, 2), "perspective": Perspective(sigma=(0, 1))}, "sigma is (0, 1)"),
        ({"image_sizes": torch.ones(3)}, "image_sizes is (3,)"),
        ({"image_sizes": torch.ones(3, 2)}, "boxes of 2 samples on cpu; expected 3 on cpu"),
        (
            {"strides": None, "grid_range": (0, 0, 1, 1), "image_sizes": torch.ones(2, 2)},
            "belong to an image",
        ),
        ({"boxes": [BoxMask(torch.zeros(2, 7), SPLITS)]}, "boxes are (2, 7); expected (N, 4 or 5)"),
        ({"boxes": [BoxMask(BOXES, SPLITS.int())]}, "splits of boxes are (3,) torch.int32"),
        (
            {"boxes": [BoxMask(BOXES, SPLITS), BoxMask(BOXES, SPLITS[[0, 2]])]},
            "boxes of 1 samples on cpu; expected 2 on cpu",
        ),
        (
            {"boxes": [BoxMask(BOXES, SPLITS), BoxMask(BOXES.to("meta"), SPLITS.to("meta"))]},
            "boxes of 2 samples on meta; expected 2 on cpu",
        ),
        ({"boxes": [BoxMask(BOXES, SPLITS[0])]}, "splits of boxes are () torch.int64"),
        ({"boxes": [BoxMask(BOXES, SPLITS, "hull")]}, "kind is 'hull'"),  # type: ignore[arg-type]
        ({"boxes": [BoxMask(BOXES, SPLITS, "gaussian", alpha=0)]}, "normalize=False, alpha=0"),
        (
            {"occlusion": Occlusion(BOXES, SPLITS, torch.zeros(3), 20.0)},
            "depths of occlusion are (3,)",
        ),
        (
            {"occlusion": Occlusion(BOXES, SPLITS, torch.zeros(2, device="meta"), 20.0)},
            "depths of occlusion are (2,) on meta; expected (2,) on cpu",
        ),
        ({"occlusion": Occlusion(BOXES, SPLITS, torch.zeros(2), 0.0)}, "near_depth of occlusion is 0.0"),
    ],
)
def test_errors_name_what_was_found(change: dict, message: str) -> None:
    arguments = {"level_shapes": [(4, 4)], "strides": [8], "boxes": [BoxMask(BOXES, SPLITS)]}
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_weights(**{**arguments, **change})


def test_depths_keep_their_fraction_if_boxes_are_integers() -> None:
    occlusion = Occlusion(torch.tensor([[0, 0, 16, 16]]), torch.tensor([0, 1]), torch.tensor([2.5]), 10.0)
    drawn = draw_weights([(2, 2)], strides=[8], occlusion=occlusion).maps
    assert torch.equal(drawn, torch.full((1, 4), 0.25))


def test_the_reference_computes_on_the_device_of_the_boxes() -> None:
    splits = torch.tensor([0, 1])
    arguments = {
        "level_shapes": [(2, 2)],
        "strides": [8],
        "occlusion": Occlusion(torch.zeros(1, 4), splits, torch.ones(1), 10.0),
        "boxes": [BoxMask(torch.zeros(1, 4), splits, kind) for kind in ("foreground", "gaussian")],
    }
    with torch.device("meta"):  # where a tensor lands that names no device
        drawn = draw_weights_reference(**arguments)
    assert drawn.maps.device.type == drawn.sums.device.type == drawn.cells.device.type == "cpu"


def test_splits_that_do_not_fit_are_refused() -> None:
    for splits in ([0, 1, 3], [0, 3, 2], [1, 1, 2]):
        with pytest.raises(RuntimeError, match="splits must ascend"):
            draw_weights([(4, 4)], strides=[8], boxes=[BoxMask(BOXES, torch.tensor(splits))])
    with pytest.raises(ValueError, match="an empty list"):
        pack_boxes([])


def on_device(value: Any, to: Callable[[Tensor], Tensor]) -> Any:
    """Returns the arguments with every tensor in them moved."""
    if isinstance(value, Tensor):
        return to(value)
    if isinstance(value, (BoxMask, Occlusion)):
        fields = {f.name: on_device(getattr(value, f.name), to) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, dict):
        return {name: on_device(item, to) for name, item in value.items()}
    return [on_device(item, to) for item in value] if isinstance(value, list) else value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_cuda_matches_the_cpu_and_never_waits(kind: Any, normalize: bool) -> None:
    boxes, splits = pixel_boxes()
    arguments = image(
        perspective=Perspective(),
        occlusion=Occlusion(boxes, splits, torch.linspace(1, 30, len(boxes)), 20.0),
        boxes=[BoxMask(boxes, splits, kind=kind, normalize=normalize)],
    )
    moved = on_device(arguments, Tensor.cuda)
    draw_weights(**moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = draw_weights(**moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = draw_weights(**arguments)
    torch.testing.assert_close(actual.maps.cpu(), expected.maps, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(actual.sums.cpu(), expected.sums, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual.cells.cpu(), expected.cells)
