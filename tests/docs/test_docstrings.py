"""Docstrings of public functions say what every argument is.

A function is public if neither its name nor that of its class, module or package begins with an underscore.
The rules follow CONTRIBUTING.md, "Docstrings".
"""

import ast
import builtins
import functools
import importlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.docs.pages import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
SHAPE = re.compile(r"\((?:[\w.*+-]+(?: or \w+)?,[^()]*|\.\.\.)\)")
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


class Public(NamedTuple):
    """A public function or method."""

    path: str
    owner: ast.ClassDef | None
    node: Function

    def __str__(self) -> str:
        owner = f"{self.owner.name}." if self.owner else ""
        return f"{self.path}:{self.node.lineno} {owner}{self.node.name}"

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def arguments(self) -> list[ast.arg]:
        """All arguments but self and cls."""
        given = self.node.args
        found = [*given.posonlyargs, *given.args]
        decorators = [ast.unparse(decorator) for decorator in self.node.decorator_list]
        if self.owner is not None and "staticmethod" not in decorators:
            found = found[1:]
        return [*found, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]


@functools.cache
def modules() -> dict[str, ast.Module]:
    paths = sorted((ROOT / "bevkd2").rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


@functools.cache
def classes() -> dict[str, list[tuple[str, ast.ClassDef]]]:
    """The classes of the package by name, each with its file."""
    found: dict[str, list[tuple[str, ast.ClassDef]]] = {}
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append((path, node))
    return found


@functools.cache
def public_functions() -> list[Public]:
    def walk(path: str, body: list[ast.stmt], owner: ast.ClassDef | None) -> Iterator[Public]:
        for node in body:
            if isinstance(node, ast.If):
                yield from walk(path, node.body, owner)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(path, node.body, node)
            elif isinstance(node, Function) and not node.name.startswith("_"):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                if not any(re.search(r"overload$|property$|\.setter$", text) for text in decorators):
                    yield Public(path, owner, node)

    parts = ((path, re.findall(r"(?<=/)_\w*", path.replace("__init__", ""))) for path in modules())
    return [found for path, hidden in parts if not hidden for found in walk(path, modules()[path].body, None)]


@functools.cache
def imported(path: str, name: str) -> object:
    """Returns what a module of the package calls ``name``, if another package than this one has it."""
    first, *rest = name.split(".")
    found: object = getattr(builtins, first, None)
    for node in ast.walk(modules()[path]):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if first == (alias.asname or alias.name) and not node.module.startswith("bevkd2"):
                    found = getattr(importlib.import_module(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if first == (alias.asname or alias.name):
                    found = importlib.import_module(alias.name)
    for part in rest:
        found = getattr(found, part, None)
    return found


def overrides(path: str, owner: ast.ClassDef, method: str) -> bool:
    """Returns whether a base class, of this package or another, has the method."""
    for base in owner.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        own = [entry for entry in classes().get(name.split(".")[-1], []) if entry[1] is not owner]
        for place, node in own:
            if any(isinstance(entry, Function) and entry.name == method for entry in node.body):
                return True
            if overrides(place, node, method):
                return True
        if not own and hasattr(imported(path, name), method):
            return True
    return False


def own_class(annotation: ast.expr | None) -> str | None:
    """Returns the class of an argument whose type is one class that the package documents, or a Namespace."""
    name = "" if annotation is None else ast.unparse(annotation).strip("'\"").split(".")[-1]
    return name if name in classes() or name == "Namespace" else None


def unnamed(public: Public) -> list[str]:
    """Returns the arguments of which a docstring without "Args:" says nothing.

    It may do without where its text names every argument (as a word, or a plural) and the shape of every
    tensor. An argument needs no word where its class documents it, and no other argument has this class; nor
    does the command line of a command, which ``--help`` documents.
    """
    types = [own_class(argument.annotation) for argument in public.arguments]
    missing, tensors = [], 0
    for argument, kind in zip(public.arguments, types, strict=True):
        text = "" if argument.annotation is None else ast.unparse(argument.annotation)
        tensors += bool(re.search(r"Tensor|ndarray|NDArray|\bArray\b", text))
        if kind and types.count(kind) == 1:
            continue
        if argument.arg == "argv" and public.path.startswith("bevkd2/cli/"):
            continue
        words = {re.escape(word) for word in (argument.arg, argument.arg.replace("_", " "))}
        if not re.search(rf"\b(?:{'|'.join(words)})s?\b", public.doc):
            missing.append(argument.arg)
    if tensors > len(SHAPE.findall(public.doc)):
        missing.append("shapes")
    return missing


def entries(doc: str) -> set[str]:
    """Returns the names that the section "Args:" explains."""
    section = re.split(SECTION, doc.partition("Args:\n")[2])[0]
    return {name.lstrip("*") for heads in ENTRY.findall(section) for name in heads.split(", ")}


def test_every_argument_of_a_public_function_is_documented():
    """Methods that override one of a base class are documented there."""
    wrong = []
    for public in public_functions():
        if not public.arguments:
            continue
        if "Args:\n" in public.doc:
            missing = [a.arg for a in public.arguments if a.arg not in entries(public.doc)]
        elif public.owner is not None and overrides(public.path, public.owner, public.node.name):
            continue
        else:
            missing = unnamed(public)
        if missing:
            wrong.append(f"{public}: {', '.join(missing)}")
    assert not wrong, "\n".join(wrong)


def test_sections_name_no_argument_that_is_not_there():
    wrong = [
        f"{public}: {', '.join(sorted(extra))}"
        for public in public_functions()
        if (extra := entries(public.doc) - {argument.arg for argument in public.arguments})
    ]
    assert not wrong, "\n".join(wrong)


def test_summaries_begin_with_a_verb_in_the_third_person():
    verb = re.compile(r"(?!This\b)[A-Z]\w*s\b")
    wrong = [str(public) for public in public_functions() if not verb.match(public.doc)]
    assert not wrong, "\n".join(wrong)
