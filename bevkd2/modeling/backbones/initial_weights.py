"""Initial weights of an image backbone, from a local file or the cache of torchvision or timm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from torchvision import models

from bevkd2.checkpoint import CheckpointFileError, load_file, load_strict
from bevkd2.checkpoint.strict import unwrapped

logger = logging.getLogger(__name__)

_CLASSIFIERS = ("fc.", "classifier.", "head.")
_BACKBONE_PREFIXES = ("img_backbone.", "image_backbone.", "backbone.")
_WRAPPERS = ("state_dict", "model")


def load_backbone_weights(backbone: nn.Module, weights: str, unused: tuple[str, ...] = ()) -> None:
    """Fills a backbone from a file in its own layout (torchvision's or timm's).

    A classifier's keys are left out. Of a file of a whole detector the part under ``img_backbone.``,
    ``image_backbone.`` or ``backbone.`` is taken. A backbone with deformable convolutions may start from a
    plain one: its offsets then stay at zero, which is logged. A backbone with group normalisation may start
    from one with batch normalisation: it takes the scales and shifts and leaves out the running statistics,
    which is logged.

    Args:
        backbone: filled in place.
        weights: a local .safetensors or .pth file, or what :func:`find_weights` finds in a library's cache.
        unused: prefixes of keys in the file that the backbone does not have, such as later stages.

    Raises:
        FileNotFoundError: no such file, or one that cannot be downloaded.
        CheckpointFileError: a file that cannot be read safely, or that has no tensors.
        StateDictMismatchError: keys or shapes that do not match, by name.
    """
    source, path = f"MODEL.BACKBONE.WEIGHTS {weights}", find_weights(weights)
    found = _backbone_part(_tensors(load_file(path), source))
    skipped = (*_CLASSIFIERS, *unused)
    found = {key: value for key, value in found.items() if not key.startswith(skipped)}
    own = backbone.state_dict()
    statistics = _unused_statistics(found, own)
    found = {key: value for key, value in found.items() if key not in statistics}
    if statistics:
        logger.info("%s: %d running statistics are not used by this backbone", source, len(statistics))
    offsets = [key for key in own if ".conv_offset." in key]
    plain = not any(key in found for key in offsets)
    if offsets and plain:
        logger.warning("%s has no deformable offsets: %d tensors start at zero", source, len(offsets))
    for key, value in own.items():
        # Files of before 2018 have no counters; a classifier in the model is not used.
        if key.startswith(_CLASSIFIERS) or key.endswith("num_batches_tracked") or (plain and key in offsets):
            found.setdefault(key, value)
    load_strict(backbone, found, source)
    logger.info("image backbone: %d tensors from %s", len(found), path)


def _unused_statistics(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Returns running statistics of layers that have none in this backbone."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    split = [(key, *key.rpartition(".")[::2]) for key in found if key not in own]
    return {key for key, layer, name in split if name in names and f"{layer}.weight" in own}


def _tensors(content: dict[str, Any], source: str) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {unwrapped(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointFileError(f"{source} has no tensors, only the keys {list(content)[:10]}")
    return state


def _backbone_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _BACKBONE_PREFIXES:
        part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if part:
            logger.info("taking the %d of %d tensors under %s", len(part), len(state), prefix)
            state = part
            break
    # Very old files keep the offsets beside the convolution.
    return {key.replace(".conv2_offset.", ".conv2.conv_offset."): value for key, value in state.items()}


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
