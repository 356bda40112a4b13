"""Every published key of SMOKE has one place here, and the way back leads to the same keys."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevkd2.checkpoint import StateDictMismatchError
from bevkd2.checkpoint.import_smoke import from_published, to_published
from bevkd2.config import load_config
from bevkd2.modeling import SMOKE

CONFIGS = Path(__file__).parents[2] / "configs" / "smoke"
KEYS = "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.txt"
UNREAD = {
    f"backbone.level{level}.project.{name}" for level in (3, 4) for name in ("0.weight", "1.weight", "1.bias")
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        return SMOKE(load_config(CONFIGS / "smoke_dla34_kitti.yaml")).state_dict()


def test_every_published_key_is_mapped_or_dropped(shared_dir: Path, state: dict[str, Tensor]):
    lines = [
        line.split("\t")
        for line in (shared_dir / "golden" / "mono" / "state_dicts" / KEYS).read_text().splitlines()
        if not line.startswith("#")
    ]
    published = {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape, *_ in lines}
    report = from_published(published).check(state, KEYS)
    assert set(report.mapped) | set(report.dropped) == set(published)
    assert set(report.dropped) == UNREAD
    assert set(to_published(report.state)) == set(published) - UNREAD


def test_round_trip_keeps_every_tensor(state: dict[str, Tensor]):
    published = to_published(state)
    assert len(published) == len(state)
    assert {key.split(".")[0] for key in published} == {"backbone", "neck", "bbox_head"}
    back = from_published({f"module.{key}": value for key, value in published.items()}).check(state, "file")
    assert set(back.state) == set(state)
    assert all(back.state[key] is value for key, value in state.items())


def test_unknown_and_missing_keys_are_named(state: dict[str, Tensor]):
    published = to_published(state)
    with pytest.raises(KeyError, match=r"no place in a published SMOKE: bbox_head\.surprise"):
        from_published({**published, "bbox_head.surprise": torch.zeros(1)})
    lacking = {key: value for key, value in published.items() if key != "neck.ida_up.ups.1.weight"}
    with pytest.raises(StateDictMismatchError, match=r"missing from it: neck\.final\.upsamplings\.1\.weight"):
        from_published(lacking).check(state, "file")
    extra = {**published, "backbone.level5.tree1.tree1.conv1.weight": torch.zeros(1)}
    with pytest.raises(StateDictMismatchError, match=r"SMOKE.*unknown to the model: backbone\.level5"):
        from_published(extra).check(state, "file")
