"""Pretrained weights of torchvision and timm, from caches that the tests fill; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from bevkd2.modeling.backbones.initial_weights import find_weights, load_backbone_weights
from bevkd2.modeling.backbones.timm_backbone import TimmBackbone

NAME = "shufflenet_v2_x0_5"
FILE = models.get_model_weights(NAME).DEFAULT.url.rpartition("/")[2]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches and no network."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_torchvision_weights_come_from_torchs_cache(caches: Path) -> None:
    torch.manual_seed(1)
    source, target = models.get_model(NAME), models.get_model(NAME)
    (caches / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), caches / "hub" / "checkpoints" / FILE)
    load_backbone_weights(target, f"torchvision://{NAME}")
    assert torch.equal(source.conv1[0].weight, target.conv1[0].weight)


def test_timm_weights_come_from_the_hubs_cache(caches: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("dla34", pretrained=False)
    repository = caches / "hf" / "models--timm--dla34.in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(source.state_dict(), str(repository / "snapshots" / ("0" * 40) / "model.safetensors"))
    backbone = TimmBackbone("dla34", out_indices=[1, 2], weights="timm://dla34")
    own = backbone.state_dict()
    key = next(key for key in own if key.endswith("base_layer.0.weight"))
    assert torch.equal(own[key], source.state_dict()["base_layer.0.weight"])


def test_failed_download_names_file_and_cache_folder(caches: Path) -> None:
    place = caches / "hub" / "checkpoints" / FILE
    with pytest.raises(FileNotFoundError, match=rf"https://.*{FILE}.*put it at {place}"):
        find_weights(f"torchvision://{NAME}")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors of .*timm/dla34.in1k"):
        find_weights("timm://dla34")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a local file, torchvision://NAME or timm://NAME"):
        find_weights("s3://resnet50")
    with pytest.raises(ValueError, match="no classification model 'resnet5'"):
        find_weights("torchvision://resnet5")
    with pytest.raises(ValueError, match="no pretrained weights of 'resnet5'"):
        find_weights("timm://resnet5")
    assert find_weights("weights/local.pth") == Path("weights/local.pth")
