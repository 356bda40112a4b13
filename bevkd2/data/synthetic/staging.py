"""All or nothing: a world is written beside its place, and never over what is not a synthetic world."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MARKER = "synthetic.json"
"""File in the dataset's root that says which configuration and generator made it."""


def write_once(
    out: str | Path, marker: dict[str, Any], overwrite: bool, fill: Callable[[Path], None]
) -> Path:
    """Makes a world in a temporary folder beside ``out`` that is renamed when all is complete.

    A world of the same marker that is already there is kept.

    Args:
        out: root of the dataset.
        marker: what the marker file is to hold: JSON with the keys ``generator_version``, ``config`` and,
            for all but nuScenes' layout, ``format``.
        overwrite: replace a synthetic world of another configuration.
        fill: writes everything but the marker below the folder that it is given.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds another world and ``overwrite`` is off, or it holds anything else.
    """
    out = Path(out)
    if _is_up_to_date(marker, out, overwrite):
        logger.info("%s already holds this synthetic world; kept", out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        fill(staging)
        (staging / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        staging.chmod(0o755)
        _publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _is_up_to_date(wanted: dict[str, Any], out: Path, overwrite: bool) -> bool:
    """Returns whether ``out`` holds this world; raises where it holds what must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    marker = out / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{out} exists and is not a synthetic world (it has no {MARKER}), so it is never replaced; "
            "name another folder with --out"
        )
    found = json.loads(marker.read_text())
    if found == wanted:
        return True
    if not overwrite:
        raise FileExistsError(
            f"{out} holds a synthetic world of another configuration ({_difference(found, wanted)}); "
            "name another folder with --out, or replace it with --overwrite"
        )
    return False


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    old_format, new_format = found.get("format", "nuscenes"), wanted.get("format", "nuscenes")
    if old_format != new_format:
        return f"format {old_format}, now {new_format}"
    if found.get("generator_version") != wanted["generator_version"]:
        return f"generator version {found.get('generator_version')}, now {wanted['generator_version']}"
    old, new = found.get("config", {}), wanted["config"]
    return ", ".join(f"{key}: {old.get(key)}, now {new[key]}" for key in new if old.get(key) != new[key])


def _publish(staging: Path, out: Path) -> None:
    """Puts the finished folder in the place of ``out``."""
    if out.is_dir() and any(out.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.replace(old)
        staging.replace(out)
        shutil.rmtree(old)
    else:
        staging.replace(out)
