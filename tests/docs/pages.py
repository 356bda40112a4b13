"""Reads README.md and docs/*.md (pages, fenced blocks, commands), and the commands of the Makefile and CI."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from fvcore.common.config import CfgNode

from bevkd2.config import get_cfg

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a bash block.

    Attributes:
        words: as the shell would split them.
        place: file and line, for messages.
    """

    words: list[str]
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line number and text of every fenced block of a language."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start(2)) + 1, match.group(2))
        for match in _FENCE.finditer(text)
        if match.group(1) == language
    ]


def languages(page: Path) -> set[str]:
    """Languages of the fenced blocks."""
    return {match.group(1) for match in _FENCE.finditer(page.read_text())}


def inline_code(page: Path) -> list[str]:
    """Everything between single backticks."""
    return _INLINE.findall(_FENCE.sub("", page.read_text()))


def commands(page: Path) -> list[Command]:
    """Every command of the bash blocks, in order; continued lines are joined, comments left out."""
    found = []
    for start, text in blocks(page, "bash"):
        number = start
        for line in text.replace("\\\n", "\0").splitlines():
            words = shlex.split(line.replace("\0", " "), comments=True)
            if words:
                found.append(Command(words, f"{page.relative_to(ROOT)}:{number}"))
            number += 1 + line.count("\0")
    return found


def make_recipes() -> dict[str, list[list[str]]]:
    """Target -> the commands that the Makefile runs for it, with the environment's python as ``python``, and
    the default of every variable that the user may set."""
    recipes: dict[str, list[list[str]]] = {}
    current: list[list[str]] = []
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    for name, default in re.findall(r"^(\w+) \?= *(.*)$", text, re.MULTILINE):
        text = text.replace(f"$({name})", default)
    for line in text.splitlines():
        rule = re.match(r"([\w$()-]+):(?!=)", line)
        if rule:
            current = recipes.setdefault(rule.group(1), [])
        elif line.startswith("\t"):
            plain = line.strip().lstrip("@").replace("$(BIN)/", "")
            current.append(shlex.split(plain))
    return recipes


def keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Every key of a config with its path, nodes included."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from keys(value, f"{prefix}{name}.")


KEYS = frozenset(keys(get_cfg()))


def ci_targets() -> set[str]:
    """Make targets that continuous integration runs."""
    return set(re.findall(r"\bmake ([\w-]+)", (ROOT / ".ci" / "run").read_text()))
