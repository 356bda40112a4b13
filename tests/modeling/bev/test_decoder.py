import torch

from bevkd2.modeling.bev.box_coder import decode_codes
from bevkd2.modeling.bev.decoder import DeformableCrossAttention, ObjectDecoder, inverse_sigmoid
from bevkd2.modeling.bev.layers import LayerOptions
from bevkd2.structures import wrap_angle

RANGE = (-12.0, -9.0, -5.0, 12.0, 9.0, 3.0)


def make_decoder(num_layers: int = 3, ray_heading: bool = False) -> ObjectDecoder:
    torch.manual_seed(0)
    return ObjectDecoder(
        LayerOptions(embed_dim=8, num_heads=2, ffn_dim=8, dropout=0.0),
        num_layers=num_layers,
        num_points=2,
        num_classes=3,
        pc_range=RANGE,
        ray_heading=ray_heading,
    )


def test_centres_refine_the_reference_and_the_rest_is_the_branchs_output():
    decoder = make_decoder()
    out = decoder(torch.randn(5, 16), torch.randn(2, 12, 8), (3, 4))
    low, high = torch.tensor(RANGE).chunk(2)
    for layer, branch in enumerate(decoder.box_branches):
        raw, reference = branch(out.states[layer]), out.reference_points[layer]
        center = (inverse_sigmoid(reference) + raw[..., [0, 1, 4]]).sigmoid()
        torch.testing.assert_close(out.box_codes[layer][..., [0, 1, 4]], center * (high - low) + low)
        torch.testing.assert_close(
            out.box_codes[layer][..., [2, 3, 5, 6, 7, 8, 9]], raw[..., [2, 3, *range(5, 10)]]
        )
        torch.testing.assert_close(out.reference_points[layer + 1], center)


def test_headings_relative_to_the_ray_are_turned_by_its_azimuth():
    """All other numbers of a code are those of the decoder without it."""
    queries, bev = torch.randn(5, 16), torch.randn(2, 12, 8)
    plain = make_decoder(2)(queries, bev, (3, 4)).box_codes
    codes = make_decoder(2, ray_heading=True)(queries, bev, (3, 4)).box_codes
    others = [0, 1, 2, 3, 4, 5, 8, 9]
    assert torch.equal(codes[..., others], plain[..., others])
    boxes, local = decode_codes(codes.flatten(0, 2)), decode_codes(plain.flatten(0, 2))
    azimuth = torch.atan2(boxes.center[:, 1], boxes.center[:, 0])
    torch.testing.assert_close(wrap_angle(boxes.yaw - azimuth), local.yaw, atol=1e-5, rtol=0)
    torch.testing.assert_close(codes[..., 6:8].norm(dim=-1), plain[..., 6:8].norm(dim=-1))


def test_velocities_of_the_grid_are_added_at_the_predicted_centre():
    """All other numbers of a code are those of the decoder without it, and the grid gets a gradient."""
    queries, bev = torch.randn(5, 16), torch.randn(2, 12, 8)
    plain = make_decoder(2)(queries, bev, (3, 4)).box_codes
    x = (torch.arange(4) + 0.5) / 4 * 24 - 12  # vx of a cell is the x of its centre, vy is 7
    grid = torch.stack([x.expand(3, 4), torch.full((3, 4), 7.0)]).expand(2, 2, 3, 4).clone().requires_grad_()
    codes = make_decoder(2)(queries, bev, (3, 4), velocities=grid).box_codes
    assert torch.equal(codes[..., :8], plain[..., :8])
    added = codes[..., 8:] - plain[..., 8:]
    inside = (plain[..., 0].abs() < 9) & (plain[..., 1].abs() < 6)  # between the centres of cells
    assert inside.sum() > 5
    torch.testing.assert_close(added[..., 0][inside], plain[..., 0][inside], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(added[..., 1][inside], torch.full((int(inside.sum()),), 7.0))
    codes[..., 8:].sum().backward()
    assert grid.grad.abs().sum() > 0


def test_no_gradient_flows_from_layer_to_layer_through_the_references():
    decoder = make_decoder()
    out = decoder(torch.randn(5, 16), torch.randn(2, 12, 8), (3, 4))
    assert [reference.requires_grad for reference in out.reference_points] == [True, False, False, False]
    out.box_codes[2].sum().backward()
    gradients = [branch[-1].weight.grad.abs().sum() for branch in decoder.box_branches]
    assert [bool(gradient > 0) for gradient in gradients] == [False, False, True]
    assert decoder.reference_points.weight.grad.abs().sum() > 0  # where the first layer samples


def test_cross_attention_reads_the_cell_at_the_reference():
    attention = DeformableCrossAttention(LayerOptions(4, num_heads=1, ffn_dim=4, dropout=0.0), num_points=1)
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(4))
    bev = torch.randn(1, 6, 4)  # 2 rows, 3 columns
    cell = torch.tensor([[[2.5 / 3, 0.5 / 2]]])  # x, y: column 2 of row 0
    query = torch.randn(1, 1, 4)
    out = attention(query, torch.randn(1, 1, 4), bev, cell, (2, 3))
    torch.testing.assert_close(out, query + bev[:, 2:3])


def test_inverse_sigmoid_is_bounded():
    x = torch.tensor([-1.0, 0.0, 0.25, 1.0, 2.0])
    bound = torch.tensor(1e-5).logit()
    expected = torch.stack([bound, bound, torch.tensor(0.25).logit(), -bound, -bound])
    torch.testing.assert_close(inverse_sigmoid(x), expected, atol=1e-3, rtol=0)
