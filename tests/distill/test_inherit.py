import pytest
import torch
from torch import nn

from bevkd2.distill.inherit import inherit, verify_inherited


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


def test_off_touches_nothing():
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


def test_verification_names_what_moved():
    student, teacher = Model(), Model()
    names = list(inherit(student, teacher, ALL, "freeze"))
    verify_inherited(student, teacher, names, "")
    with torch.no_grad():
        student.tensors["column"][0, 0] += 0.25
    with pytest.raises(RuntimeError, match=r"bev_position.column differs.*0\.25"):
        verify_inherited(student, teacher, names, "")
