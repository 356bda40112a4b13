"""Pretrained weights of torchvision and timm, found in or downloaded to those libraries' own caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torchvision import models

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(weights: str) -> Path:
    """Returns the local file of MODEL.BACKBONE.WEIGHTS.

    Args:
        weights: a path, "torchvision://NAME" (the default weights of a model, such as "resnet50") or
            "timm://NAME" (such as "dla34" or "resnet18.a1_in1k").

    Raises:
        FileNotFoundError: a library's file is not in its cache and cannot be downloaded; the message names
            the file and where to put it.
        ValueError: an unknown library, or a model without pretrained weights.
    """
    library, separator, name = weights.partition("://")
    if not separator:
        return Path(weights)
    if library not in _LIBRARIES:
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS is {weights!r}, expected a local file, torchvision://NAME or timm://NAME"
        )
    return _LIBRARIES[library](name)


def _torchvision_file(name: str) -> Path:
    if name not in models.list_models(module=models):
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS: torchvision has no classification model {name!r}; one is 'resnet50'"
        )
    return _file_of_url(models.get_model_weights(name).DEFAULT.url, f"torchvision://{name}")


def _timm_file(name: str) -> Path:
    pretrained = timm.get_pretrained_cfg(name) if name.partition(".")[0] in timm.list_models() else None
    if pretrained is not None and not pretrained.hf_hub_id and isinstance(pretrained.url, str):
        return _file_of_url(pretrained.url, f"timm://{name}")
    if pretrained is None or not pretrained.hf_hub_id:
        raise ValueError(f"MODEL.BACKBONE.WEIGHTS: timm has no pretrained weights of {name!r}")
    repository = pretrained.hf_hub_id
    names = (pretrained.hf_hub_filename,) if pretrained.hf_hub_filename else _HUB_FILES
    for file in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    try:
        return Path(huggingface_hub.hf_hub_download(repository, names[0]))
    except OSError as error:  # every error of the network and of the hub is one
        raise FileNotFoundError(
            f"MODEL.BACKBONE.WEIGHTS timm://{name}: {names[0]} of https://huggingface.co/{repository} is not "
            f"in the cache {huggingface_hub.constants.HF_HUB_CACHE} and cannot be downloaded ({error}); on a "
            f"machine with a network, run `hf download {repository} {names[0]}` and copy its cache, or copy "
            "the file anywhere and name its path in MODEL.BACKBONE.WEIGHTS"
        ) from error


def _file_of_url(url: str, weights: str) -> Path:
    """Returns the file of a URL in torch's cache; it is downloaded where it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = path.stem.rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:  # no network | another checksum
        raise FileNotFoundError(
            f"MODEL.BACKBONE.WEIGHTS {weights}: {path.name} is not in torch's cache and cannot be downloaded "
            f"({error}); fetch {url} on a machine with a network and put it at {path}, or name its path in "
            "MODEL.BACKBONE.WEIGHTS"
        ) from error
    return path


_LIBRARIES: dict[str, Callable[[str], Path]] = {"torchvision": _torchvision_file, "timm": _timm_file}
