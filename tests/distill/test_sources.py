"""Feature maps by name: which ones there are, what they hold, and errors at build time."""

import pytest
import torch

from bevkd2.d2 import ShapeSpec
from bevkd2.distill import resolve_sources
from bevkd2.modeling import BEVShape, FeatureShapes
from tests.distill.methods.harness import build_detector, build_pair, make_batch


def shapes(width=8, levels=2, stride=8, grid=(6, 8), layers=2):
    fpn = [ShapeSpec(channels=width, stride=stride * 2**i) for i in range(levels)]
    backbone = {"res4": ShapeSpec(channels=4 * width, stride=16)}
    return FeatureShapes(backbone, fpn, BEVShape(width, grid, layers) if grid else None)


def raise_unless(condition, key, found):
    if not condition:
        raise ValueError(f"{key}: {found}")


def resolve(names, student=None, teacher=None, layer_map=()):
    return resolve_sources(names, student or shapes(), teacher or shapes(16), raise_unless, layer_map)


def test_names_stand_for_maps_in_order():
    found = resolve(["bev", "fpn", "backbone.res4", "bev.layers", "bev.temporal.1"])
    assert [source.name for source in found] == [
        "bev", "fpn.0", "fpn.1", "backbone.res4", "bev.layers.0", "bev.layers.1", "bev.temporal.1",
    ]  # fmt: skip
    assert [source.plane for source in found] == ["bev", *["image"] * 3, *["bev"] * 3]
    assert (found[1].student_channels, found[1].teacher_channels, found[1].stride) == (8, 16, 8)


def test_layers_of_unequal_encoders_are_paired_evenly_or_as_told():
    one, two = shapes(layers=1), shapes(16, layers=2)
    (source,) = resolve(["bev.layers"], one, two)
    assert (source.student_key, source.teacher_key) == (0, 1)
    (source,) = resolve(["bev.layers"], one, two, [[0, 0]])
    assert (source.student_key, source.teacher_key) == (0, 0)


@pytest.mark.parametrize(
    ("names", "student", "teacher", "message"),
    [
        ([], None, None, "SOURCES: empty"),
        (["neck"], None, None, "'neck'; expected backbone"),
        (["backbone.res9"], None, None, "student's backbone gives res4"),
        (["fpn.2"], None, None, "expected fpn.0 to fpn.1"),
        (["fpn"], shapes(levels=1), None, "1 levels, the teacher's 2"),
        (["fpn.0"], shapes(stride=4), None, "its stride is 4 in the student and 8"),
        (["bev"], shapes(grid=None), None, "the student has no bird's-eye view"),
        (["bev"], None, shapes(grid=(6, 9)), r"\(6, 8\) rows and columns in the student and \(6, 9\)"),
        (["bev.layers.2"], None, None, "student's 2 encoder layers"),
        (["bev.decoder"], None, None, "expected bev, or bev.layers"),
        (["bev.layers"], shapes(layers=0), None, "the student has no encoder layers"),
        (["fpn", "fpn.1"], None, None, "fpn.1 named twice"),
    ],
)
def test_what_the_two_do_not_share_is_named(names, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        resolve(names, student, teacher)


def test_maps_are_what_the_knowledge_holds():
    model = build_detector("BEVFormer", 16, 0)
    names = ["backbone.res4", "fpn.0", "bev", "bev.layers", "bev.spatial.0"]
    sources = resolve_sources(names, model.feature_shapes(), model.feature_shapes(), raise_unless)
    wants = frozenset().union(*(source.requires for source in sources))
    known = model.extract(model.preprocess(make_batch("BEVFormer", 1)), wants)
    backbone, fpn, bev, first, last, spatial = (s.read(known, known).student for s in sources)
    assert torch.equal(backbone, known.backbone["res4"])
    assert torch.equal(fpn, known.fpn[0])
    assert torch.equal(bev[:, :, 2, 3], known.bev_embed[:, 2 * 8 + 3])
    assert torch.equal(last, bev) and not torch.equal(first, bev)
    assert torch.equal(spatial.flatten(2).transpose(1, 2), known.spatial_outputs[0])


def test_a_teacher_of_larger_images_is_resized_to_the_students_maps():
    (source,) = resolve(["fpn.0"])
    model = build_detector("PGD", 8, 0)
    known = model.extract(model.preprocess(make_batch("PGD", 1)), frozenset({"fpn"}))
    larger = model.extract(model.preprocess(make_batch("PGD", 1)), frozenset({"fpn"}))
    larger.fpn = [torch.full((1, 16, 20, 30), 2.0)]
    pair = source.read(known, larger)
    assert pair.teacher.shape[-2:] == pair.student.shape[-2:]
    assert torch.equal(pair.teacher, torch.full_like(pair.teacher, 2.0))


def test_a_method_names_its_node_in_the_error():
    with pytest.raises(ValueError, match=r"DISTILL\.PKD\.SOURCES: 'bev'; the student has no bird's-eye view"):
        build_pair("PGD", "PKD", SOURCES=["bev"])
    with pytest.raises(ValueError, match=r"DISTILL\.PKD\.ADAPTER: none, but fpn.0 has 8 channels"):
        build_pair("PGD", "PKD", ADAPTER="none")
