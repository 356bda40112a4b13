"""Writes docs/config_reference.md: every config key, its default, and the comment beside it in the source.

python docs/make_config_reference.py
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from yacs.config import CfgNode as YacsNode

from bevkd2.config import CfgNode, get_cfg

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("config_reference.md")
HEADER = """# Config keys

Every key of `bevkd2.config.get_cfg()`, by node, with its default and the comment beside it in the
source. `make tables` writes this page; a test fails where it is not
current. Keys of a package of your own are added by that package ([extending.md](extending.md)).
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        name: the whole name, such as "SOLVER.BASE_LR".
        default: its default.
        file: the source file that adds it, relative to the repository.
        comment: what stands beside the assignment, or directly above it; empty where there is none.
    """

    name: str
    default: Any
    file: str
    comment: str

    @property
    def node(self) -> str:
        """Name of the node that the key is in; empty at the top."""
        return self.name.rpartition(".")[0]


def config_keys() -> list[Key]:
    """Returns all keys in the order in which they are added."""
    places: dict[tuple[int, str], tuple[str, int]] = {}
    set_item = YacsNode.__setitem__ if "__setitem__" in vars(YacsNode) else dict.__setitem__
    nodes = []  # keeps every node, so that no id is used twice

    def record(node: YacsNode, name: str, value: Any) -> None:
        nodes.append(node)
        frame = _caller(sys._getframe(1))
        places[id(node), name] = (frame.f_code.co_filename, frame.f_lineno)
        set_item(node, name, value)

    with mock.patch.object(YacsNode, "__setitem__", record, create=True):
        cfg = get_cfg()
    return [
        Key(name, default, str(Path(file).relative_to(ROOT)), comment_at(Path(file), line))
        for name, default, (file, line) in _leaves(cfg, places)
    ]


def _caller(frame: FrameType | None) -> FrameType:
    """Returns the first frame in the repository's own code."""
    while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(ROOT / "bevkd2"):
        frame = frame.f_back
    assert frame is not None
    return frame


def _leaves(
    node: CfgNode, places: dict[tuple[int, str], tuple[str, int]], prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[str, int]]]:
    for name, value in node.items():
        if isinstance(value, YacsNode) and value:
            yield from _leaves(value, places, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, places[id(node), name]


def comment_at(path: Path, line: int) -> str:
    """Returns the comment of the statement at a line: at its end, else in the lines directly above it."""
    statements, comments, alone = _parsed(path)
    start, end = min((s for s in statements if s[0] <= line <= s[1]), key=lambda s: s[1] - s[0])
    beside = [comments[i] for i in range(start, end + 1) if i in comments]
    above: list[str] = []
    while start - 1 in alone:
        start -= 1
        above.insert(0, comments[start])
    return " ".join(beside or above)


@functools.cache
def _parsed(path: Path) -> tuple[list[tuple[int, int]], dict[int, str], set[int]]:
    """Returns first and last lines of simple statements, comments by line, and lines of a comment alone."""
    text = path.read_text()
    statements = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)
    ]
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return statements, comments, alone


def page() -> str:
    """Returns the text of the page."""
    parts, keys = [HEADER], config_keys()
    for node in dict.fromkeys(key.node for key in keys):
        rows = [key for key in keys if key.node == node]
        parts.append(f"## {node or 'Top level'}\n")
        for file in dict.fromkeys(key.file for key in rows):
            parts.append(f"In [{file}](../{file}).\n")
            parts.append("| key | default | |\n|---|---|---|")
            parts.extend(_row(key) for key in rows if key.file == file)
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _row(key: Key) -> str:
    default, comment = (text.replace("|", "\\|") for text in (repr(key.default), key.comment))
    return f"| `{key.name.rpartition('.')[2]}` | `{default}` | {comment} |"


if __name__ == "__main__":
    PAGE.write_text(page())
