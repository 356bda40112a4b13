"""ReviewKD against its formula in loops: fusion, hierarchical distance, order of the sources."""

import pytest
import torch
import torch.nn.functional as F

from tests.distill.methods.inputs import (
    bev_shapes,
    build_method,
    fpn_knowledge,
    fpn_shapes,
    gradient,
    normal,
)

CHANNELS, WANTED, MIDDLE = 3, 4, 5
SIZES = [(8, 6), (4, 3), (2, 2)]


def build(levels=3, **settings):
    torch.manual_seed(0)
    shapes = fpn_shapes(CHANNELS, levels), fpn_shapes(WANTED, levels)
    return build_method("ReviewKD", *shapes, MID_CHANNELS=MIDDLE, **settings).eval()


def features(channels, seed):
    return [normal(2, channels, *size, seed=seed + i) for i, size in enumerate(SIZES)]


def averages(image, size):
    """Averages of windows that are rounded outwards to whole cells."""
    rows, columns = image.shape
    result = torch.zeros(size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            y = range(i * rows // size, -(-(i + 1) * rows // size))
            x = range(j * columns // size, -(-(j + 1) * columns // size))
            result[i, j] = torch.stack([image[a, b] for a in y for b in x]).mean()
    return result


def hierarchical(student, teacher):
    loss, total, weight = ((student - teacher) ** 2).mean().item(), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= min(student.shape[-2:]):
            continue
        weight, squares = weight / 2, []
        for image in range(student.shape[0]):
            for channel in range(student.shape[1]):
                pooled = [averages(maps[image, channel], size) for maps in (student, teacher)]
                squares.append(((pooled[0] - pooled[1]) ** 2).mean())
        loss += weight * torch.stack(squares).mean().item()
        total += weight
    return loss / total


def norm(values, layer):
    shape = (1, -1, 1, 1)
    return values / (1 + layer.eps) ** 0.5 * layer.weight.view(shape) + layer.bias.view(shape)


def test_levels_are_fused_from_the_coarsest_to_the_finest():
    ours, theirs = features(CHANNELS, 0), features(WANTED, 10)
    method = build()
    loss = method(fpn_knowledge(ours), fpn_knowledge(theirs), None)
    expected, below = 0.0, None
    for level in (2, 1, 0):
        fusion = method.fusions[level]
        fused = norm(F.conv2d(ours[level], fusion.reduce[0].weight), fusion.reduce[1])
        if below is not None:
            rows, columns = SIZES[level]
            enlarged = torch.zeros(2, MIDDLE, rows, columns, dtype=fused.dtype)
            for y in range(rows):
                for x in range(columns):
                    enlarged[:, :, y, x] = below[
                        :, :, y * below.shape[2] // rows, x * below.shape[3] // columns
                    ]
            layer = fusion.attention[0]
            shares = F.conv2d(torch.cat([fused, enlarged], 1), layer.weight, layer.bias).sigmoid()
            fused = fused * shares[:, :1] + enlarged * shares[:, 1:]
        made = norm(F.conv2d(fused, fusion.expand[0].weight, padding=1), fusion.expand[1])
        expected += hierarchical(made.detach(), theirs[level])
        below = fused
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert method.fusions[2].attention is None


def test_pooled_distances_count_what_is_wrong_on_average():
    # The same squared distance, once of one sign and once of alternating signs.
    theirs = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    even = torch.ones_like(theirs)
    odd = even.clone()
    odd[..., ::2] = -1
    assert hierarchical(even, theirs) == pytest.approx(1.0)
    assert hierarchical(odd, theirs) == pytest.approx(1 / 1.875)


def test_all_levels_and_layers_learn():
    ours = [level.requires_grad_() for level in features(CHANNELS, 0)]
    method = build().train()
    method(fpn_knowledge(ours), fpn_knowledge(features(WANTED, 10)), None).backward()
    assert all(level.grad.abs().max() > 0 for level in ours)
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())


def test_bfloat16_features_are_finite():
    ours = [level.bfloat16().requires_grad_() for level in features(CHANNELS, 0)]
    theirs = [level.bfloat16() for level in features(WANTED, 10)]
    loss = build().bfloat16()(fpn_knowledge(ours), fpn_knowledge(theirs), None)
    assert loss.dtype == torch.float32 and gradient(loss, ours[2]).any()


def test_bad_sources_name_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.REVIEW_KD\.SOURCES: fpn\.0; expected at least two maps"):
        build(levels=1)
    with pytest.raises(ValueError, match=r"have strides \[16, 8\]; list the finest first"):
        build(SOURCES=["fpn.1", "fpn.0"])
    with pytest.raises(ValueError, match=r"DISTILL\.REVIEW_KD\.SOURCES: bev; expected at least two maps"):
        build_method("ReviewKD", bev_shapes(3, (6, 8)), SOURCES=["bev"])
    with pytest.raises(ValueError, match=r"DISTILL\.REVIEW_KD\.MID_CHANNELS: 0"):
        build_method("ReviewKD", fpn_shapes(3, levels=2), MID_CHANNELS=0)
