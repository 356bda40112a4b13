"""Text files in KITTI's layout, as editors and scripts write them."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_ascii(path: Path) -> bytes:
    """Returns the content of a text file without the byte-order mark of UTF-8.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in UTF-16, or no regular file: reading a pipe may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is a folder, a pipe or a device, expected a text file; put the file there")
    content = path.read_bytes()
    if content.startswith(_UTF16) and b"\0" in content:
        raise ValueError(
            f"{path} is in UTF-16 (it begins with the bytes {content[:2].hex(' ')}), expected ASCII or "
            "UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
        )
    return content.removeprefix(codecs.BOM_UTF8)
