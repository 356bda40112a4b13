import torch

from bevkd2.modeling.bev.grid_mask import GridMask, MaskPattern, apply_masks


def masked(grid: GridMask, images: torch.Tensor) -> torch.Tensor:
    return apply_masks(images, [grid.draw(images.shape[-2]) for _ in images])


def test_probability_zero_changes_nothing() -> None:
    images = torch.rand(2, 3, 3, 16, 20)
    assert torch.equal(masked(GridMask(prob=0.0, ratio=0.5), images), images)


def test_a_sample_without_a_pattern_is_left_as_it_is_beside_one_with() -> None:
    torch.manual_seed(0)
    images, pattern = torch.rand(2, 3, 3, 16, 20) + 1, GridMask(prob=1.0, ratio=0.5).draw(16)
    result = apply_masks(images, [None, pattern])
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1] == 0, (pattern.mask(16, 20) == 0).expand(3, 3, 16, 20))


def test_mask_is_a_grid_shared_by_the_cameras() -> None:
    torch.manual_seed(0)
    result = masked(GridMask(prob=1.0, ratio=0.5), torch.ones(4, 3, 3, 32, 40))
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(result, result[:, :1, :1].expand_as(result))
    for mask in result[:, 0, 0]:
        blank = mask == 0
        # the squares between bars are the outer product of the free rows and the free columns
        assert torch.equal(blank, blank.any(1)[:, None] & blank.any(0)[None])


def test_padding_does_not_change_the_mask_of_the_image() -> None:
    torch.manual_seed(0)
    pattern = GridMask(prob=1.0, ratio=0.5).draw(30)
    assert torch.equal(pattern.mask(32, 64)[:30, :40], pattern.mask(48, 48)[:30, :40])


def test_about_the_right_share_is_blanked() -> None:
    torch.manual_seed(0)
    grid = GridMask(prob=1.0, ratio=0.5)
    kept = torch.stack([grid.draw(64).mask(64, 64) for _ in range(300)]).mean()
    assert 0.65 < float(kept) < 0.85  # 1 - (1 - ratio)^2 for large periods


def test_a_pattern_of_a_resized_image_blanks_the_same_places() -> None:
    pattern = MaskPattern(period=8, bar=4, row=2, column=6)
    larger = pattern.scaled(2.0)
    assert (larger.period, larger.bar, larger.row, larger.column) == (16, 8, 4, 12)
    each = pattern.mask(16, 24).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(larger.mask(32, 48), each)


def test_a_pattern_can_be_made_as_small_as_a_pixel() -> None:
    small = MaskPattern(period=3, bar=2, row=2, column=0).scaled(0.1)
    assert (small.period, small.bar) == (2, 1)
