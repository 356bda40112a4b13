"""What README.md and docs/*.md name exists: files, config keys, make targets."""

from __future__ import annotations

import pkgutil
import re
import shutil
from pathlib import Path

import pytest

from bevkd2.config import load_config
from tests.docs.pages import KEYS, PAGES, ROOT, blocks, commands, inline_code, make_recipes

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_DOTTED_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+\b")
_PYTHON_NAME = re.compile(r"bevkd2(?:\.\w+)+")
_ENTRY_POINT_GROUP = "bevkd2.plugins"
_SET_KEY = re.compile(r"\b([A-Z][A-Z0-9_]+): ")
_FOLDERS = ("assets", "benchmarks", "bevkd2", "configs", "csrc", "docs", "examples", "tests", "tools")

_MAX_PROSE = 100
MORE_PROSE = [
    ROOT / name
    for name in ("CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "tests/cuda_emulation/README.md")
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_there_are_pages() -> None:
    assert {"README.md", "getting_started.md", "data.md", "distillation.md", "design.md"} <= {
        page.name for page in PAGES if page.is_file()
    }


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are files of the repository."""
    targets = [target.partition("#")[0] for target in _LINK.findall(page.read_text())]
    return [target for target in targets if target and "://" not in target]


def shortened(code: list[str]) -> set[str]:
    """Keys without what leads to their node, where the page names it: AFFINE.SIZE beside INPUT.AFFINE."""
    named = {key for text in code for key in _DOTTED_KEY.findall(text)} & KEYS
    nodes = named | {key.rpartition(".")[0] for key in named}
    return {key[node.rfind(".") + 1 :] for node in nodes for key in KEYS if key.startswith(f"{node}.")}


@each_page
def test_linked_files_exist(page: Path) -> None:
    broken = [target for target in links(page) if not (page.parent / target).exists()]
    assert not broken, f"{page.name} links to what does not exist: {broken}"


def anchors(page: Path) -> set[str]:
    """What links may name behind #: headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_linked_headings_exist(page: Path) -> None:
    targets = [target.partition("#") for target in _LINK.findall(page.read_text()) if "://" not in target]
    named = [(page.parent / name if name else page, anchor) for name, _, anchor in targets if anchor]
    broken = [(path.name, anchor) for path, anchor in named if anchor not in anchors(path)]
    assert not broken, f"{page.name} links to headings that do not exist: {broken}"


@each_page
def test_pages_have_no_placeholders(page: Path) -> None:
    assert not re.findall(r"@[A-Z]+@|\bTODO\b", page.read_text())


@each_page
def test_paths_exist(page: Path) -> None:
    words = [word for code in inline_code(page) for word in code.split()]
    paths = [word for word in words if word.split("/")[0] in _FOLDERS and "/" in word and "<" not in word]
    missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing, f"{page.name} names what does not exist: {missing}"


@each_page
def test_python_names_exist(page: Path) -> None:
    names = {code for code in inline_code(page) if _PYTHON_NAME.fullmatch(code)} - {_ENTRY_POINT_GROUP}
    missing = sorted(name for name in names if not is_importable(name))
    assert not missing, f"{page.name} names what cannot be imported: {missing}"


def is_importable(name: str) -> bool:
    """Returns whether a dotted name is a module, or an attribute of one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_a_name_that_does_not_exist_is_not_importable() -> None:
    assert is_importable("bevkd2.config.get_cfg") and is_importable("bevkd2.modeling.bev.geometry")
    assert not is_importable("bevkd2.modeling.bev.projection")
    assert not is_importable("bevkd2.config.get_config")


@each_page
def test_config_keys_exist(page: Path) -> None:
    code = [*inline_code(page), *(word for command in commands(page) for word in command.words)]
    unknown = {key for text in code for key in _DOTTED_KEY.findall(text)} - KEYS - shortened(code)
    leaves = {key.rpartition(".")[2] for key in KEYS}
    unknown |= {key for text in code for key in _SET_KEY.findall(text)} - leaves
    assert not unknown, f"{page.name} names config keys that do not exist: {sorted(unknown)}"


@each_page
def test_make_targets_exist(page: Path) -> None:
    named = {target for code in inline_code(page) for target in re.findall(r"^make ([\w-]+)$", code)}
    assert named <= set(make_recipes())


@each_page
def test_configs_in_the_text_load(page: Path, tmp_path: Path) -> None:
    """They are read as files of configs/distill; those that have a path are run by test_extending.py."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for line, text in blocks(page, "yaml"):
        if text.startswith(("# configs/", "# experiments/")):  # the latter: tests/experiments/test_spec.py
            continue
        path = tmp_path / "configs" / "distill" / f"line{line}.yaml"
        path.write_text(text)
        teacher = load_config(path).DISTILL.TEACHER.CONFIG
        assert not teacher or Path(teacher).is_file()


def long_lines(page: Path) -> list[int]:
    """Returns the numbers of prose lines over the limit; code, tables, headings and links are exempt."""
    found, in_code = [], False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        in_code ^= line.startswith("```")
        exempt = in_code or line.startswith(("```", "|", "#", "<"))
        if not exempt and len(_LINK.sub("]", line)) > _MAX_PROSE:  # the target of a link cannot be broken
            found.append(number)
    return found


@pytest.mark.parametrize("page", [*PAGES, *MORE_PROSE], ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_lines_are_short(page: Path) -> None:
    numbers = long_lines(page)
    assert not numbers, f"{page.name} has lines over {_MAX_PROSE} characters: {numbers}"


def test_a_long_line_is_found_outside_code_and_tables(tmp_path: Path) -> None:
    page, long = tmp_path / "page.md", "word " * 25
    page.write_text(f"{long}\n```\n{long}\n```\n| {long} |\nshort\n- {long}\n")
    assert long_lines(page) == [1, 7]
