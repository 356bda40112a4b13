"""Weights that an image body starts from, read from a local file."""

from __future__ import annotations

import logging
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_CLASSIFIERS = ("fc.", "classifier.", "head.")
_BODY_PREFIXES = ("img_backbone.", "image_backbone.", "backbone.")
_WRAPPERS = ("state_dict", "model")


def load_body_weights(body: nn.Module, path: str, unused: tuple[str, ...] = ()) -> None:
    """Fills a body from a file in its own layout (torchvision's or timm's).

    A classifier's keys are left out. Of a file of a whole detector the part under ``img_backbone.``,
    ``image_backbone.`` or ``backbone.`` is taken. A body with deformable convolutions may start from a plain
    one: its offsets then stay at zero, which is logged.

    Args:
        body: filled in place.
        path: a local .safetensors, .pth, .pt or .bin file.
        unused: prefixes of keys in the file that the body has no use for, such as later stages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys that do not match, by name; shapes that do not; another file type.
    """
    skipped = (*_CLASSIFIERS, *unused)
    found = {key: value for key, value in _strip(_read(Path(path))).items() if not key.startswith(skipped)}
    own = {key: value for key, value in body.state_dict().items() if not key.startswith(skipped)}
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in own]
    offsets = [key for key in missing if ".conv_offset." in key]
    if offsets and not any(".conv_offset." in key for key in found):
        logger.warning("%s has no deformable offsets: %d tensors start at zero", path, len(offsets))
        missing = [key for key in missing if ".conv_offset." not in key]
    wrong = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    if missing or unexpected or wrong:
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS: {path} does not fit the body: {_some('missing', missing)}; "
            f"{_some('unexpected', unexpected)}; {_some('wrong shapes', wrong)}. Check MODEL.RESNETS or "
            "MODEL.TIMM.NAME against the file"
        )
    body.load_state_dict(found, strict=False)
    logger.info("image body: %d tensors from %s", len(found), path)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"MODEL.BACKBONE.WEIGHTS: {path} does not exist; it takes a local file, or '' to start at random"
        )
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(str(path))
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS: {path} is a {path.suffix or 'suffixless'} file, expected .safetensors, "
            ".pth, .pt or .bin (a .pkl is refused: reading it could run code)"
        )
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _BODY_PREFIXES:
        part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if part:
            logger.info("taking the %d of %d tensors under %s", len(part), len(state), prefix)
            state = part
            break
    # Very old files keep the offsets beside the convolution.
    return {key.replace(".conv2_offset.", ".conv2.conv_offset."): value for key, value in state.items()}


def _some(what: str, names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {what}{': ' if names else ''}{', '.join(names[:limit])}{rest}"
