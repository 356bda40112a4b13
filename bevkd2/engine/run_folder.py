"""OUTPUT_DIR: its check, and what a run does with what an earlier one left there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml
from fvcore.common.config import CfgNode

from bevkd2.checkpoint.checkpointer import CHECKPOINT_FILES
from bevkd2.config.node import load_plain_yaml
from bevkd2.config.shipped import refuse_address

_logger = logging.getLogger(__name__)

# What a training writes, besides its log, which is added to. Other files in the folder are the user's own.
_OF_A_TRAINING = (
    "last_checkpoint",
    "metrics.json",
    "events.out.tfevents.*",
    *CHECKPOINT_FILES,
)
_BESIDE_IT = ("config.yaml", "inference")
_EARLIER = "earlier_run_"

LOCK_FILE = "training.lock"
"""Name of the file in OUTPUT_DIR that a training holds a lock on."""

_LONGEST_HOLDER = 200  # characters
_claimed: dict[tuple[int, Path], TextIO] = {}  # by process, since a forked one has a copy, and no lock


def output_folder(cfg: CfgNode) -> Path:
    """Returns OUTPUT_DIR, which need not exist yet.

    Raises:
        ValueError: it is empty, so that nothing would be saved, a file, a link to nothing, or an address.
    """
    refuse_address(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    if not cfg.OUTPUT_DIR.strip():
        raise ValueError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, expected a folder: without one no checkpoint is saved; name "
            "one, such as output/my_run (an unset shell variable gives an empty word)"
        )
    folder = Path(cfg.OUTPUT_DIR)
    if folder.is_symlink() and not folder.exists():
        raise ValueError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, a link to {folder.readlink()}, which does not exist; make "
            "that folder, or name another"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, which is a file; name a folder")
    return folder


def make_output_folder(cfg: CfgNode) -> Path:
    """Returns OUTPUT_DIR, which is made where it does not exist.

    Raises:
        OSError: it cannot be made.
        ValueError: as :func:`output_folder`.
    """
    folder = output_folder(cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be made ({error.strerror}); name a folder that can be "
            "written",
        ) from error
    return folder


def claim(folder: Path) -> None:
    """Makes this process the only one that trains in a folder, until it ends or calls :func:`release`.

    The lock is POSIX's, of the process: it ends with it, however that ends, and processes that it has forked,
    such as loader workers, do not keep it. A second call in the same process does nothing.

    Args:
        folder: OUTPUT_DIR, which exists.

    Raises:
        OSError: the file of the lock cannot be written.
        ValueError: another process has it; it is named.
    """
    path = folder.resolve() / LOCK_FILE
    if (os.getpid(), path) in _claimed:
        return
    file = path.open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(_LONGEST_HOLDER).strip() or "unknown"
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            _logger.warning("%s cannot be locked (%s): nothing keeps a second training out", path, error)
            return
        raise ValueError(
            f"OUTPUT_DIR {str(folder)!r} is that of a training that is running ({holder}, says {LOCK_FILE}); "
            "wait for it, end it, or name another folder: two trainings would mix their files"
        ) from error
    file.truncate(0)
    file.write(
        f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    )
    file.flush()
    _claimed[os.getpid(), path] = file


def release(folder: Path) -> None:
    """Gives up what :func:`claim` took; nothing is done where this process has not claimed the folder."""
    file = _claimed.pop((os.getpid(), folder.resolve() / LOCK_FILE), None)
    if file is not None:
        file.close()


def set_aside(folder: Path) -> None:
    """Moves the files of an earlier training into a folder of their own, so that two runs never mix.

    Args:
        folder: OUTPUT_DIR of a training that starts anew; nothing is done where no other was there.
    """
    found = sorted(path for pattern in _OF_A_TRAINING for path in folder.glob(pattern))
    if not found:
        return
    found += [folder / name for name in _BESIDE_IT if (folder / name).exists()]
    numbers = [path.name.removeprefix(_EARLIER) for path in folder.glob(f"{_EARLIER}*")]
    target = folder / f"{_EARLIER}{max(map(int, filter(str.isdecimal, numbers)), default=0) + 1}"
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    _logger.warning(
        "OUTPUT_DIR %s held an earlier training; its files are in %s now (%s). --resume continues a "
        "training, another OUTPUT_DIR keeps two apart",
        folder,
        target,
        ", ".join(path.name for path in found),
    )


def log_changed_settings(cfg: CfgNode, earlier: Path) -> None:
    """Logs every setting of a resumed training that differs from those of its earlier part.

    Args:
        cfg: the config, whose settings hold from here on.
        earlier: the config.yaml that the earlier part wrote; nothing is logged where it is not there.

    Raises:
        ValueError: it is no YAML file.
    """
    if not earlier.is_file():
        return
    old = dict(flat_settings(load_plain_yaml(earlier)))
    new = dict(flat_settings(yaml.safe_load(cfg.dump())))
    changed = [
        f"{key} {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted({*old, *new})
        if old.get(key, earlier) != new.get(key, earlier)
    ]
    if changed:
        _logger.warning(
            "resuming with other settings than before, which hold from here on: %s", "; ".join(changed)
        )


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting of a config with its whole name, such as ``MODEL.DEVICE``.

    Args:
        tree: the config as nested mappings; an empty mapping yields nothing.
        prefix: what every name begins with, its last dot included.
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
