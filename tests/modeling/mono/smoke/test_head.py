import torch

from bevkd2.modeling.mono.smoke.head import SmokeHead


def test_maps_have_the_ranges_that_their_meaning_asks_for():
    torch.manual_seed(0)
    head = SmokeHead(16, 3, 32)
    for parameter in head.box_branch.parameters():
        torch.nn.init.normal_(parameter)
    outputs = head(torch.randn(2, 16, 6, 8))
    assert outputs.logits.shape == (2, 3, 6, 8)
    assert outputs.codes.shape == (2, 8, 6, 8)
    sizes = outputs.codes[:, 3:6]
    assert sizes.abs().max() <= 0.5
    assert sizes.std() > 0.1
    torch.testing.assert_close(outputs.codes[:, 6:].norm(dim=1), torch.ones(2, 6, 8))


def test_it_starts_with_few_objects():
    outputs = SmokeHead(16, 3, 32)(torch.randn(1, 16, 6, 8))
    assert 0.05 < outputs.logits.sigmoid().mean() < 0.2
