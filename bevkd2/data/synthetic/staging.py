"""Atomic writing: a world is written to a temporary folder, and never replaces other files."""

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
"""File in the root of the data set with the configuration and the version of the generator."""


def write_once(
    out: str | Path, marker: dict[str, Any], overwrite: bool, fill: Callable[[Path], None]
) -> Path:
    """Writes a world to a temporary folder beside ``out``, which is renamed when all files are complete.

    An existing world with the same marker is kept.

    Args:
        out: root of the dataset.
        marker: content of the marker file: JSON with the keys ``generator_version``, ``config`` and, for all
            layouts but nuScenes, ``format``.
        overwrite: replace a synthetic world of another configuration.
        fill: writes all files but the marker to the folder that it gets.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` has another world and ``overwrite`` is off, or has files of something else.
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
    """Returns whether ``out`` has this world; raises FileExistsError if it must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    marker = out / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{out} exists and is not a synthetic world (it has no {MARKER}), so it is never replaced; "
            "name another folder with --out"
        )
    try:
        found = dict(json.loads(marker.read_text()))
    except (ValueError, TypeError) as error:
        raise FileExistsError(
            f"{marker} is damaged ({error}), so {out} is not replaced; name another folder with --out, or "
            "remove this one"
        ) from error
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
    """Replaces ``out`` by the finished folder."""
    if out.is_dir() and any(out.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.replace(old)
        staging.replace(out)
        shutil.rmtree(old)
    else:
        staging.replace(out)
