"""The model zoo's figures are those of the configs, and those that docs/model_zoo.md shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import model_zoo
from tests.configs.shipped import CONFIGS, DISTILLATIONS, MONOCULAR, built, name_of, plain

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "model_zoo_xeon_2_cores.json"
DETECTORS = json.loads(RESULTS.read_text())["detectors"]


def test_the_page_shows_what_was_counted() -> None:
    assert set(DETECTORS) == set(model_zoo.DETECTORS)
    assert model_zoo.table({"detectors": DETECTORS}) in (ROOT / "docs" / "model_zoo.md").read_text()


@pytest.mark.parametrize("name", DETECTORS)
def test_counted_parameters_are_still_those_of_the_config(name: str) -> None:
    parameters = DETECTORS[name]["parameters"]
    assert parameters["total"] == sum(p.numel() for p in built(CONFIGS / f"{name}.yaml").parameters())


def test_every_model_is_counted() -> None:
    counted = [plain(CONFIGS / f"{name}.yaml").MODEL for name in DETECTORS]
    left_out = {
        name_of(path)
        for path in MONOCULAR
        if path not in DISTILLATIONS and path.parent.name != "demo_mono" and plain(path).MODEL not in counted
    }
    assert not left_out


def test_what_is_counted_is_written_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    name, out = "pgd/pgd_regnetx08_half_kitti", tmp_path / "out.json"
    counted = DETECTORS[name]
    monkeypatch.setattr(model_zoo, "count", lambda asked: counted if asked == name else None)
    monkeypatch.setattr("sys.argv", ["model_zoo.py", "--only", name, "--json", str(out)])
    model_zoo.main()
    assert json.loads(out.read_text())["detectors"] == {name: counted}
    assert counted["image_size"] == [1248, 384] and "9.61" in capsys.readouterr().out
