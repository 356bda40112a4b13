import pytest
import torch

from bevkd2.config import get_cfg, plugins
from bevkd2.distill.methods import DISTILL_REGISTRY, DistillMethod, register_method
from bevkd2.modeling.detector import BEVShape, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge

B, N, H, W, C, HEADS = 2, 6, 3, 4, 8, 2


def build(name: str, grids=((3, 4), (3, 4)), **options) -> DistillMethod:
    method = DISTILL_REGISTRY.get(name)
    node = get_cfg().DISTILL[method.node]
    for key, value in options.items():
        assert key in node
        node[key] = value
    shapes = (FeatureShapes(backbone={}, fpn=[], bev=BEVShape(C, grid, 2)) for grid in grids)
    return method(node, *shapes)


def knowledge(seed: int, layers: int = 2, channels: int = C, grid=(H, W)) -> BEVKnowledge:
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def weights(*shape):
        return normal(*shape).flatten(-2).softmax(-1).reshape(shape)

    mask = torch.ones(B, N, cells, dtype=torch.bool)
    mask[0, :, 5] = False
    mask[1, 1:, 2] = False
    return BEVKnowledge(
        bev_embed=torch.randn(B, cells, channels, generator=generator),
        bev_shape=grid,
        bev_range=(-1.0, -1.0, 1.0, 1.0),
        bev_mask=mask,
        temporal_attention=[weights(B, cells, HEADS, 2, 1, 4) for _ in range(layers)],
        spatial_attention=[weights(B, cells, HEADS, 2, 8) for _ in range(layers)],
        temporal_offsets=[normal(B, cells, HEADS, 2, 1, 4, 2) for _ in range(layers)],
        spatial_offsets=[normal(B, cells, HEADS, 2, 8, 2) for _ in range(layers)],
        layer_outputs=[normal(B, cells, channels) for _ in range(layers)],
    )


NAMES = ["TemporalAttention", "SpatialAttention", "BEVResponse"]


@pytest.mark.parametrize("reduction", ["norm", "sum", "cell", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_identical_knowledge_has_zero_loss(name, reduction):
    loss = build(name, REDUCTION=reduction)(knowledge(0), knowledge(0), None)
    assert loss.item() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_that_no_camera_sees_does_not_count(name):
    student, teacher = knowledge(0), knowledge(1)
    before = build(name)(student, teacher, None)
    student.bev_embed[0, 5] += 100.0
    for weights in (*student.temporal_attention, *student.spatial_attention):
        weights[0, 5] += 100.0
    after = build(name)(student, teacher, None)
    assert before.item() > 0
    torch.testing.assert_close(before, after)
    student.bev_embed[0, 4] += 100.0
    student.temporal_attention[0][0, 4] += 100.0
    student.spatial_attention[0][0, 4] += 100.0
    assert build(name)(student, teacher, None) > 10 * before


def test_attention_is_the_norm_of_equation_6_averaged_over_layers():
    student, teacher = knowledge(0), knowledge(1)
    loss = build("SpatialAttention")(student, teacher, None)
    seen = student.seen_by_any_camera()
    expected = 0.0
    for s, t in zip(student.spatial_attention, teacher.spatial_attention, strict=True):
        for b in range(B):
            expected += (s[b] - t[b])[seen[b]].pow(2).sum().sqrt().item() / B / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_bev_response_is_equation_7_and_8():
    student, teacher = knowledge(0), knowledge(1, channels=2 * C)
    loss = build("BEVResponse")(student, teacher, None)
    seen = student.seen_by_any_camera()
    expected = 0.0
    for b in range(B):
        difference = student.bev_embed[b].abs().mean(-1) - teacher.bev_embed[b].abs().mean(-1)
        expected += difference[seen[b]].pow(2).sum().sqrt().item() / B
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_depths_that_differ_are_mapped():
    teacher = knowledge(1, layers=4)
    student = knowledge(0, layers=2)
    loss = build("TemporalAttention")(student, teacher, None)
    teacher.temporal_attention = teacher.temporal_attention[1::2]
    torch.testing.assert_close(loss, build("TemporalAttention")(student, teacher, None))
    explicit = build("TemporalAttention", LAYER_MAP=[[0, 0]])(student, teacher, None)
    assert explicit != loss


@pytest.mark.parametrize("name", NAMES)
def test_different_grids_are_an_error_that_names_both(name):
    with pytest.raises(ValueError, match=r"(12|3, 4)[\s\S]*(20|4, 5)"):
        build(name, grids=((3, 4), (4, 5)))(knowledge(0), knowledge(1, grid=(4, 5)), None)


def test_a_method_that_reads_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="no_such_field"):

        class Wrong(DistillMethod):
            node = "WRONG"
            requires = frozenset({"no_such_field"})


def test_a_method_without_forward_is_refused_when_it_is_built():
    class Unfinished(DistillMethod):
        node = "UNFINISHED"

    with pytest.raises(TypeError, match=r"abstract method '?forward"):
        Unfinished(get_cfg().DISTILL.PKD, *[FeatureShapes(backbone={}, fpn=[])] * 2)


def test_a_registered_method_brings_its_node(monkeypatch):
    # Its node is in no config that later tests make.
    monkeypatch.setattr(plugins, "_EXTENSIONS", list(plugins._EXTENSIONS))

    @register_method
    class MeanDistance(DistillMethod):
        node = "MEAN_DISTANCE"

        def forward(self, student, teacher, targets):
            return (student.bev_embed.mean() - teacher.bev_embed.mean()).abs()

    assert get_cfg().DISTILL.MEAN_DISTANCE.WEIGHT == 1.0
    assert build("MeanDistance")(knowledge(0), knowledge(0), None) == 0
