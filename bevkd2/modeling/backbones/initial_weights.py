"""Initial weights of an image backbone, from a local file or a library's cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bevkd2.checkpoint import CheckpointFileError, load_file, load_strict
from bevkd2.modeling.backbones.library_weights import find_weights

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
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
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
