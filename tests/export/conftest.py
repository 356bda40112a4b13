"""What the tests of exported files share."""

from __future__ import annotations

import pytest


@pytest.fixture
def onnx_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install bevkd2[export]")
