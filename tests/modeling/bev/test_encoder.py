import torch

from bevkd2.modeling.bev.encoder import BEVEncoder
from bevkd2.modeling.bev.geometry import History, VisiblePairs, bev_reference_points
from bevkd2.modeling.bev.layers import LayerOptions

SHAPE = (2, 3)
CELLS = 6


def test_tokens_have_the_embeddings_of_camera_and_level():
    encoder = BEVEncoder(
        LayerOptions(embed_dim=4, num_heads=2, ffn_dim=4, dropout=0.0),
        num_layers=1,
        bev_shape=SHAPE,
        num_cameras=3,
        num_levels=2,
        num_level_embeddings=4,
        temporal_points=1,
        spatial_points=1,
    )
    features = [torch.randn(2, 3, 4, 2, 5), torch.randn(2, 3, 4, 1, 2)]
    seen = []
    encoder.layers[0].spatial_attention.value_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    references = bev_reference_points(SHAPE, torch.device("cpu")).expand(2, 2, CELLS, 2)
    pairs = VisiblePairs(
        reference_points=torch.zeros(0, 1, 2),
        row_splits=torch.zeros(2 * CELLS + 1, dtype=torch.int64),
        row_value=torch.zeros(0, dtype=torch.int64),
        bev_mask=torch.zeros(2, 3, CELLS, dtype=torch.bool),
    )
    history = History(None, [False, False], references)
    encoder(torch.randn(2, CELLS, 4), torch.randn(CELLS, 4), features, pairs, history)
    (tokens,) = seen
    assert tokens.shape == (6, 12, 4)
    for sample, camera in ((0, 2), (1, 0)):
        for level, first in ((0, 0), (1, 10)):
            feature = features[level][sample, camera]
            index = feature.shape[1] * feature.shape[2] - 1  # of the last pixel
            embeddings = encoder.camera_embeddings[camera] + encoder.level_embeddings[level]
            expected = feature[:, -1, -1] + embeddings.detach()
            torch.testing.assert_close(tokens[sample * 3 + camera, first + index], expected)
