"""Published weights for ``bevkd2 import-weights``: a small valid file, its conversion, and what is right."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from bevkd2.checkpoint import load_file
from bevkd2.checkpoint.import_bevformer import to_published
from bevkd2.cli import import_weights
from bevkd2.config import load_config
from bevkd2.modeling import BEVFormer
from bevkd2.nuscenes.layout import CLASS_NAMES
from tests.fuzz import reference
from tests.fuzz.checkpoints import same_tensors
from tests.fuzz.validity import Result

_CONFIG = """
MODEL:
  RESNETS: {DEPTH: 10, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}
  FPN: {OUT_CHANNELS: 8}
  BEVFORMER:
    {NUM_HEADS: 2, FFN_DIM: 8, BEV_SHAPE: [4, 5], NUM_QUERIES: 6, ENCODER_LAYERS: 1, DECODER_LAYERS: 1}
"""


def write_published(folder: Path) -> None:
    """A small BEVFormer by the published names, beside what mmdetection3d writes, and the names."""
    (folder / "model.yaml").write_text(_CONFIG)
    torch.manual_seed(0)
    state = BEVFormer(load_config(folder / "model.yaml")).state_dict()
    published = to_published(state, torch.ones(len(CLASS_NAMES)))
    names = {value.data_ptr(): name for name, value in state.items() if value.numel()}
    ours = {name: names[value.data_ptr()] for name, value in published.items() if value.data_ptr() in names}
    (folder / "names.json").write_text(json.dumps(ours))
    content = {"meta": {"epoch": 24, "CLASSES": CLASS_NAMES}, "state_dict": published}
    torch.save(content, folder / "published.pth")


def import_published(folder: Path) -> Result:
    """The file that the command writes."""
    out = folder / "ours.pth"
    out.unlink(missing_ok=True)
    words = [folder / "published.pth", out]
    options = ["--arch", "bevformer", "--config-file", str(folder / "model.yaml")]
    with contextlib.redirect_stdout(io.StringIO()):
        import_weights.main([*options, *map(str, words)])
    return {"content": load_file(out)["model"]}


def same_published(old: bytes, new: bytes) -> bool:
    """Whether the state dict has other numbers, but the same keys and shapes; the rest may be anything."""
    return same_tensors(*(_weights(data) for data in (old, new)))


def _weights(data: bytes) -> bytes:
    try:
        content: Any = torch.load(io.BytesIO(data), weights_only=True)["state_dict"]
    except Exception:  # noqa: BLE001  (whatever torch raises)
        return data
    file = io.BytesIO()
    torch.save({"model": content, "note": 1}, file)
    return file.getvalue()


def expected_import(folder: Path) -> Result:
    """The tensors of the file under the names that they had before the mutation."""
    names = json.loads((folder / "names.json").read_text())
    found = {
        name.replace("module.", ""): value
        for name, value in reference.tensors(folder / "published.pth").items()
    }
    return {ours: found.get(name, torch.tensor(0)) for name, ours in names.items()}
