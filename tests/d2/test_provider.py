import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from bevkd2.d2.provider import choose_provider, explain_broken

INSTALLED = ModuleSpec("detectron2", None, origin="/packages/detectron2/__init__.py")
FOLDER = ModuleSpec("detectron2", None, origin=None)


@pytest.mark.parametrize(
    ("environ", "spec", "expected"),
    [
        ({}, INSTALLED, "detectron2"),
        ({}, None, "embedded"),
        ({}, FOLDER, "embedded"),
        ({"BEVKD2_D2": ""}, INSTALLED, "detectron2"),
        ({"BEVKD2_D2": "embedded"}, INSTALLED, "embedded"),
        ({"BEVKD2_D2": "detectron2"}, INSTALLED, "detectron2"),
    ],
)
def test_choice(environ, spec, expected):
    assert choose_provider(environ, spec) == expected


@pytest.mark.parametrize("spec", [None, FOLDER])
def test_forcing_a_provider_that_is_not_installed_fails(spec):
    with pytest.raises(ImportError, match=r"not installed.*unset BEVKD2_D2"):
        choose_provider({"BEVKD2_D2": "detectron2"}, spec)


def test_unknown_value_of_the_switch_fails():
    with pytest.raises(ValueError, match="BEVKD2_D2 is 'd2'; 'detectron2' and 'embedded'"):
        choose_provider({"BEVKD2_D2": "d2"}, INSTALLED)


def test_explanation_names_place_cause_and_remedy():
    message = str(explain_broken(OSError("undefined symbol"), INSTALLED))
    assert "/packages/detectron2/__init__.py" in message
    assert "OSError: undefined symbol" in message
    assert "BEVKD2_D2=embedded" in message


@pytest.mark.parametrize("fault", ["import no_such_module", "raise AttributeError('Image.LINEAR')"])
def test_broken_installation_is_an_error_not_a_fallback(tmp_path, fault):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text(fault)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environ = {name: value for name, value in os.environ.items() if name != "BEVKD2_D2"}
    run = subprocess.run(
        [sys.executable, "-c", "import bevkd2.d2"],
        env={**environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "ImportError: Detectron2 is installed" in run.stderr
    assert "BEVKD2_D2=embedded" in run.stderr
