"""The pages docs/ops*.md: their examples run, and they name every public function."""

import inspect
from pathlib import Path

import pytest

import bevkd2.ops
from tests.docs.pages import PAGES, blocks

OPS_PAGES = [page for page in PAGES if page.name.startswith("ops")]
EXAMPLES = [
    pytest.param(text, id=f"{page.name}:{line}")
    for page in OPS_PAGES
    for line, text in blocks(page, "python")
]


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "export_onnx" in example:
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install bevkd2[export]")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "example", "exec"), {})


def test_every_public_function_is_documented() -> None:
    text = "".join(page.read_text() for page in OPS_PAGES)
    functions = {name for name in bevkd2.ops.__all__ if inspect.isfunction(getattr(bevkd2.ops, name))}
    assert {"ms_deform_attn", "draw_weights", "export_onnx"} <= functions
    assert not {name for name in functions if f"`{name}`" not in text}
