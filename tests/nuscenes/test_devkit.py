import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("nuscenes", 'pip install --no-deps "nuscenes-devkit>=1.2"'),
        ("pyquaternion", "nuscenes-devkit imports pyquaternion, which is not installed"),
    ],
)
def test_import_without_the_devkit_names_the_remedy(missing: str, remedy: str):
    code = f"import sys; sys.modules[{missing!r}] = None; import bevkd2.nuscenes.devkit"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert remedy in run.stderr.splitlines()[-1]


def test_no_other_module_imports_the_devkit():
    modules = sorted((ROOT / "bevkd2").rglob("*.py"))
    lines = {(p.name, line.strip()) for p in modules for line in p.read_text().splitlines()}
    importers = {name for name, line in lines if line.startswith(("from nuscenes", "import nuscenes"))}
    assert importers == {"devkit.py"}
