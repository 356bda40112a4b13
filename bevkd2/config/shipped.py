"""The files that bevkd2 ships: ``configs/`` and ``assets/``, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "assets")


def shipped_folder(name: str) -> Path:
    """Returns where a shipped folder is: inside an installed package, or beside it in a checkout.

    Args:
        name: one of ``FOLDERS``.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(
        f"bevkd2's own {name}/ is neither in {_PACKAGE} nor beside it; the installation is incomplete, "
        "install bevkd2 again"
    )


def expanded(path: str | Path) -> Path:
    """Returns a path whose ``~`` is the home folder; with ``~name`` of no user, the path as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path's raises a RuntimeError there)


def refuse_address(path: str | Path, what: str) -> None:
    """Checks that a path is not an address such as ``s3://bucket/nuscenes``.

    Args:
        path: of a file or folder; a Path has one slash of the two left.
        what: the path's name in the message, such as a config key.

    Raises:
        ValueError: it is one.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(
            f"{what} is {str(path)!r}, an address; expected a path: files are read and written in folders "
            "alone. Copy or mount it (docs/multi_machine.md), and name the path"
        )


def find_file(path: str | Path) -> Path:
    """Returns ``path`` where it exists, else the shipped file of that name.

    So ``configs/distill_r50.yaml`` names the shipped file from any working directory, and a file of the
    user's own that is there takes precedence.

    Args:
        path: a file; only relative paths below ``configs`` or ``assets`` can name a shipped one.

    Returns:
        ``path`` itself where neither exists, for the reader's own error.
    """
    path = Path(path)
    return path if path.exists() else shipped_file(path) or path


def shipped_file(path: Path) -> Path | None:
    """Returns the shipped file that ``path`` names; None where it names none.

    Args:
        path: only a relative path below ``configs`` or ``assets`` can name one.
    """
    if path.is_absolute() or path.parts[:1] not in [(name,) for name in FOLDERS]:
        return None
    shipped = shipped_folder(path.parts[0]).joinpath(*path.parts[1:])
    return shipped if shipped.exists() else None
