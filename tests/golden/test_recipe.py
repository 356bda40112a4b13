"""Which set of weights a recording is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import recipe


@pytest.mark.parametrize("tag", ["g1", "k42", "night", "of-the-file"])
def test_the_tag_is_found_by_the_input(tmp_path: Path, tag: str) -> None:
    (tmp_path / "README.md").write_text("Weights follow a recipe. For tag T (`night` here), key k ...")
    images = recipe.noise(tag, "input", (1, 3, 4, 8))
    assert recipe.recorded_tag(tmp_path / "full_nets" / "smoke_of-the-file.npz", images) == tag


def test_an_input_of_no_tag_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "NUMBERS", 3)
    images = recipe.noise("g1", "input", (1, 3, 4, 8))
    images[0, 2, 3, 7] += 1e-12
    with pytest.raises(ValueError, match="no tag makes its input"):
        recipe.recorded_tag(tmp_path / "full_nets" / "smoke.npz", images)
