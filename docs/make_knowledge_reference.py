"""Writes docs/knowledge_reference.md: every knowledge field, its type, and the docstring below it.

python docs/make_knowledge_reference.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path

from bevkd2.modeling import BEVKnowledge, Knowledge, MonoKnowledge, PreActivation, TemporalState

PAGE = Path(__file__).with_name("knowledge_reference.md")
CLASSES = (Knowledge, BEVKnowledge, MonoKnowledge, PreActivation, TemporalState)
HEADER = """# Knowledge fields

What a detector's `extract` returns, and distillation methods and figures read: the fields of the
dataclasses in `bevkd2/modeling/knowledge.py`. A costly field is filled only where `wants` names it,
which a method does in `requires`. How a method uses them: [extending.md](extending.md).
`make tables` writes this page; a test fails where it is not current.
"""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a dataclass.

    Attributes:
        name: its name.
        type: as the source annotates it, without "| None".
        costly: filled only where ``wants`` names it.
        meaning: its docstring, in one line; shapes are in it.
    """

    name: str
    type: str
    costly: bool
    meaning: str


def fields_of(cls: type) -> list[Field]:
    """Returns the fields that a dataclass declares itself, in order."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    costly = {field.name for field in dataclasses.fields(cls) if field.metadata.get("costly")}
    found = []
    for statement, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        meaning = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            meaning = " ".join(str(below.value.value).split())
        name, annotation = statement.target.id, ast.unparse(statement.annotation)
        found.append(Field(name, annotation.removesuffix(" | None"), name in costly, meaning))
    return found


def page() -> str:
    """Returns the text of the page."""
    parts = [HEADER]
    for cls in CLASSES:
        parts.append(f"## {cls.__name__}\n\n{_paragraphs(cls)}\n")
        parts.append("| field | type | costly | shape and meaning |\n|---|---|---|---|")
        parts.extend(_row(field) for field in fields_of(cls))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _paragraphs(cls: type) -> str:
    """Returns the docstring of a class in Markdown: inline code in single backticks, no Sphinx roles."""
    text = (inspect.getdoc(cls) or "").replace(":data:", "").replace("``", "`")
    return "\n\n".join(textwrap.fill(paragraph, 100) for paragraph in text.split("\n\n"))


def _row(field: Field) -> str:
    meaning = field.meaning.replace("``", "`").replace("|", "\\|")
    kind = field.type.replace("|", "\\|")
    return f"| `{field.name}` | `{kind}` | {'yes' if field.costly else ''} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page())
