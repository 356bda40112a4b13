import pytest
import torch
from torch import nn

from bevkd2.distill import Distiller
from bevkd2.distill.inherit import inherit, verify_inherited
from tests.distill.methods.harness import build_detector


class Model(nn.Module):
    def __init__(self, grid=(4, 6), width=8, queries=5):
        super().__init__()
        self.bev_shape = grid
        self.tensors = nn.ParameterDict(
            {
                "bev_queries": nn.Parameter(torch.randn(grid[0] * grid[1], width)),
                "row": nn.Parameter(torch.randn(grid[0], width // 2)),
                "column": nn.Parameter(torch.randn(grid[1], width // 2)),
                "object_queries": nn.Parameter(torch.randn(queries, 2 * width)),
            }
        )

    def inheritable(self):
        t = self.tensors
        return {
            "bev_queries": t["bev_queries"],
            "bev_position.row": t["row"],
            "bev_position.column": t["column"],
            "object_queries": t["object_queries"],
        }


ALL = ["bev_queries", "bev_position", "object_queries"]


def test_freeze_copies_and_stops_the_gradient():
    student, teacher = Model(), Model()
    names = inherit(student, teacher, ALL, "freeze")
    assert set(names) == {"bev_queries", "bev_position.row", "bev_position.column", "object_queries"}
    for name, parameter in student.inheritable().items():
        assert not parameter.requires_grad
        assert torch.equal(parameter, teacher.inheritable()[name])
        assert parameter.data_ptr() != teacher.inheritable()[name].data_ptr()


def test_init_copies_and_leaves_it_trainable():
    student, teacher = Model(), Model()
    inherit(student, teacher, ["bev_queries"], "init")
    assert torch.equal(student.inheritable()["bev_queries"], teacher.inheritable()["bev_queries"])
    assert all(p.requires_grad for p in student.parameters())
    assert not torch.equal(student.inheritable()["object_queries"], teacher.inheritable()["object_queries"])


def test_off_changes_no_parameter():
    student, teacher = Model(), Model()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    assert inherit(student, teacher, ALL, "off") == {}
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_different_grids_are_an_error_that_names_both_shapes_and_the_remedy():
    with pytest.raises(ValueError, match=r"teacher bev_queries is \(24, 8\), student's is \(12, 8\).*RESIZE"):
        inherit(Model(grid=(3, 4)), Model(grid=(4, 6)), ALL, "freeze")


def test_bilinear_resizes_queries_and_positions():
    student, teacher = Model(grid=(2, 3)), Model(grid=(4, 6))
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    with torch.no_grad():
        teacher.tensors["bev_queries"].copy_((10 * y + x).reshape(24, 1).expand(24, 8))
        teacher.tensors["row"].copy_(torch.arange(4.0)[:, None].expand(4, 4))
    inherit(student, teacher, ALL, "freeze", "bilinear")
    # A halved grid's cell centres lie between two old ones: 0.5 and 2.5 (and 4.5).
    expected = torch.tensor([[10 * 0.5 + 0.5, 10 * 0.5 + 2.5, 10 * 0.5 + 4.5], [25.5, 27.5, 29.5]])
    torch.testing.assert_close(student.tensors["bev_queries"][:, 0].reshape(2, 3), expected)
    torch.testing.assert_close(student.tensors["row"][:, 0], torch.tensor([0.5, 2.5]))
    verify_inherited(student, teacher, list(student.inheritable()), "bilinear")


@pytest.mark.gpu
def test_resized_parameters_are_verified_after_a_move_to_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    student, teacher = Model(grid=(50, 50), width=64), Model(grid=(33, 47), width=64)
    names = list(inherit(student, teacher, ALL, "freeze", "bilinear"))
    verify_inherited(student.cuda(), teacher.cuda(), names, "bilinear")


@pytest.mark.parametrize("student", [Model(width=16), Model(queries=7)])
def test_other_widths_and_query_counts_cannot_be_resized(student):
    with pytest.raises(ValueError, match="same width and number of queries"):
        inherit(student, Model(), ALL, "freeze", "bilinear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "copy"}, "INHERIT.MODE.*'copy'.*freeze"),
        ({"mode": "freeze", "resize": "nearest"}, "INHERIT.RESIZE.*'nearest'"),
        ({"mode": "freeze", "params": ["bev_query"]}, "INHERIT.PARAMS.*'bev_query'.*bev_queries"),
    ],
)
def test_unknown_settings_are_named(options, message):
    arguments = {"params": ALL, **options}
    with pytest.raises(ValueError, match=message):
        inherit(Model(), Model(), **arguments)


def test_verification_names_changed_parameters():
    student, teacher = Model(), Model()
    names = list(inherit(student, teacher, ALL, "freeze"))
    verify_inherited(student, teacher, names, "")
    with torch.no_grad():
        student.tensors["column"][0, 0] += 0.25
    with pytest.raises(RuntimeError, match=r"bev_position.column differs.*0\.25"):
        verify_inherited(student, teacher, names, "")


class Normalized(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, 2, 1)
        nn.init.normal_(self.neck[1].running_mean)


def test_any_prefix_can_start_from_the_teacher_with_its_statistics():
    student, teacher = Normalized(), Normalized()
    pairs = inherit(student, teacher, ["neck", "head.bias"], "init")
    assert {name.split(".")[0] for name in pairs} == {"neck", "head"} and "head.weight" not in pairs
    assert torch.equal(student.neck[1].running_mean, teacher.neck[1].running_mean)
    assert torch.equal(student.neck[0].weight, teacher.neck[0].weight)
    assert not torch.equal(student.head.weight, teacher.head.weight)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_frozen_prefix_is_verified():
    student, teacher = Normalized(), Normalized()
    names = list(inherit(student, teacher, ["head"], "freeze"))
    assert names == ["head.weight", "head.bias"] and not student.head.weight.requires_grad
    verify_inherited(student, teacher, names, "")
    with torch.no_grad():
        student.head.bias += 1
    with pytest.raises(RuntimeError, match=r"head\.bias differs"):
        verify_inherited(student, teacher, names, "")


def test_statistics_that_training_changes_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"neck\.1 is a batch normalisation.*INIT_PARAMS"):
        inherit(Normalized(), Normalized(), ["neck"], "freeze")


def test_other_architectures_are_named():
    with pytest.raises(ValueError, match=r"neck.0.weight is \(4, 3, 1, 1\), student's is \(5.*architecture"):
        inherit(Normalized(5), Normalized(), ["neck"], "init")
    with pytest.raises(ValueError, match=r"'tower' is not in both models.* such as head, neck"):
        inherit(Normalized(), Normalized(), ["tower"], "init")


def test_a_decoder_may_start_from_the_teachers_beside_frozen_queries():
    teacher, student = (build_detector("BEVFormer", 16, seed) for seed in (1, 2))
    model = Distiller(
        student=student,
        teacher=teacher,
        methods={},
        weights={},
        inherit_mode="freeze",
        inherit_params=["bev_queries", "object_queries"],
        inherit_init=["decoder", "neck"],
    )
    assert not student.object_queries.requires_grad and "object_queries" in model.inherited
    assert torch.equal(student.decoder.reference_points.weight, teacher.decoder.reference_points.weight)
    assert torch.equal(student.decoder.box_branches[1][4].bias, teacher.decoder.box_branches[1][4].bias)
    assert all(parameter.requires_grad for parameter in student.decoder.parameters())
    model.verify_inherited()


def test_a_dense_head_may_start_from_the_teachers():
    teacher, student = (build_detector("PGD", 8, seed) for seed in (1, 2))
    Distiller(student=student, teacher=teacher, methods={}, weights={}, inherit_init=["head", "neck"])
    assert torch.equal(student.head.class_branch.out.weight, teacher.head.class_branch.out.weight)
    ours, theirs = (next(model.image_backbone.parameters()) for model in (student, teacher))
    assert not torch.equal(ours, theirs)


def test_a_parameter_is_either_frozen_or_trained():
    teacher, student = (build_detector("BEVFormer", 16, seed) for seed in (1, 2))
    with pytest.raises(ValueError, match=r"INIT_PARAMS names bev_queries, which DISTILL\.INHERIT"):
        Distiller(
            student=student,
            teacher=teacher,
            methods={},
            weights={},
            inherit_mode="freeze",
            inherit_params=["bev_queries"],
            inherit_init=["bev_queries"],
        )


def test_box_branches_are_taken_over_only_where_headings_mean_the_same():
    teacher = build_detector("BEVFormer", 16, 1, "MODEL.BEVFORMER.RAY_HEADING", True)
    student = build_detector("BEVFormer", 16, 2)
    pair = {"student": student, "teacher": teacher, "methods": {}, "weights": {}}
    with pytest.raises(ValueError, match="RAY_HEADING is False in the student and True in the teacher"):
        Distiller(**pair, inherit_init=["decoder"])
    Distiller(**pair, inherit_init=["neck", "decoder.class_branches"])


def test_box_branches_are_taken_over_with_the_head_to_which_their_velocities_are_added():
    options = ("MODEL.BEVFORMER.DENSE_VELOCITY", True, "MODEL.BEVFORMER.AUX.BEV_BOX_WEIGHT", 1.0)
    teacher, student = (build_detector("BEVFormer", 16, seed, *options) for seed in (1, 2))
    pair = {"student": student, "teacher": teacher, "methods": {}, "weights": {}}
    with pytest.raises(ValueError, match=r"box_branches.* is inherited without bev_box_head"):
        Distiller(**pair, inherit_init=["decoder"])
    Distiller(**pair, inherit_init=["decoder", "bev_box_head"])
    assert torch.equal(student.bev_box_head[2].weight, teacher.bev_box_head[2].weight)
