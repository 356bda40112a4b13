#!/usr/bin/env python
"""Converts published weights to this package's checkpoint format, every key accounted for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import bevkd2.modeling  # noqa: F401  (registers the meta-architectures)
from bevkd2.checkpoint import (
    CheckpointFileError,
    StateDictMismatchError,
    import_bevformer,
    import_fcos3d,
    import_smoke,
    load_file,
    save_file,
)
from bevkd2.config import load_config
from bevkd2.d2 import META_ARCH_REGISTRY

IMPORTERS = {
    "bevformer": import_bevformer.from_published,
    "fcos3d": import_fcos3d.from_published,
    "pgd": import_fcos3d.from_published,
    "smoke": import_smoke.from_published,
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=sorted(IMPORTERS), required=True)
    parser.add_argument("--config-file", required=True, help="config of the model that the weights are for")
    parser.add_argument("input", help="published file: .pth or .safetensors")
    parser.add_argument("output", help="file to write: .pth or .safetensors")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    return parser.parse_args(argv)


def state_dict_of(content: dict[str, Any], source: str) -> dict[str, Tensor]:
    """Returns the tensors in a published file, which may keep them under ``state_dict``."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointFileError(
            f"{source} holds no state dict: expected tensors by name, or a key 'state_dict' with them, found "
            f"the keys {list(content)[:10]}"
        )
    return state


def main(argv: Sequence[str] | None = None) -> int:
    """Converts one file; returns the exit status."""
    args = parse_args(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.BACKBONE.WEIGHTS = ""
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        published = state_dict_of(load_file(args.input), args.input)
        report = IMPORTERS[args.arch](published).check(model.state_dict(), args.input)
        content = report.state if Path(args.output).suffix == ".safetensors" else {"model": report.state}
        save_file(content, args.output)
    except (CheckpointFileError, StateDictMismatchError, FileNotFoundError, KeyError, ValueError) as error:
        print(f"error: {error.args[0] if error.args else error}", file=sys.stderr)
        return 1
    print(f"{len(published)} keys: {len(report.mapped)} mapped, {len(report.dropped)} dropped, 0 missing")
    for key, reason in report.dropped.items():
        print(f"dropped {key}: {reason}")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
