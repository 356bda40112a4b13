"""Tables and pictures of invented results have the numbers that follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bevkd2.experiments.report import compare, curves_figure, intervals_figure, markdown, write_pictures
from bevkd2.experiments.results import read_results
from bevkd2.experiments.spec import Experiment
from bevkd2.experiments.statistics import two_way_interval
from tests.experiments import tiny

SCORES = {
    "plain": {0: 0.20, 1: 0.24, 2: 0.22},
    "better": {0: 0.30, 1: 0.32, 2: 0.34},
    "other": {0: 0.21, 1: 0.23},
    "none": {},
}
ROWS = [{"name": "plain", "label": "plain student"}, {"name": "better"}, {"name": "other"}, {"name": "none"}]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return tiny.marked(tmp_path, rows=ROWS, seeds=[0, 1, 2])


def cells(table: str) -> dict[str, list[str]]:
    """The cells of a Markdown table by the first one of each line; the header's is empty."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines if not line[0].startswith("--")}


def test_tables_have_the_numbers(experiment: Experiment, tmp_path: Path) -> None:
    tiny.invent(experiment, tmp_path / "results", SCORES)
    results = read_results(tmp_path / "results", experiment)
    headline, second, others, missing = markdown(experiment, results).split("\n\n")
    found = cells(headline)
    assert found[""][1] == experiment.primary[0]
    assert found["plain student"] == ["3", "0.220", "0.020", "", "", "", "", ""]
    # Differences 0.10, 0.08, 0.12: mean 0.10, sd 0.02; t(0.975, 2) = 4.3027; its half width is 0.0497.
    row = found["better"]
    assert row[:6] == ["3", "0.320", "0.020", "+0.100", "0.020", "+0.050 to +0.150"]
    p_better = stats.ttest_1samp([0.10, 0.08, 0.12], 0).pvalue
    assert row[7] == f"{2 * p_better:.3f}"  # Holm: the smallest of two
    # Differences 0.01, -0.01: mean 0, p = 1.
    assert found["other"][3:5] == ["+0.000", "0.014"] and found["other"][7] == "1.000"
    assert "none" not in found
    # Without unit u, "better" gains 0.001 u more than "plain": the influences are 0.003 (1.5 - u).
    pulls = [3e-3 * (1.5 - np.arange(4))] * 3
    low, high = two_way_interval([0.10, 0.08, 0.12], pulls)
    assert row[6] == f"{low:+.3f} to {high:+.3f}"
    assert "95 % interval (seeds, scenes)" not in second and cells(second)["better"][3] == "+0.100"
    assert cells(others) == {
        "mean": ["Car_2D_moderate_R40"],
        **{"plain student": ["2.200"], "better": ["3.200"], "other": ["2.200"]},
    }
    assert missing == "Not run: none; other (seeds 2)."
    assert compare(experiment, results, experiment.primary[1])["better"].interval is None


def test_rows_are_compared_with_each_other(tmp_path: Path) -> None:
    pairs = [["better", "other"], ["none", "other"]]
    experiment = tiny.marked(tmp_path, rows=ROWS, seeds=[0, 1, 2], comparisons=pairs)
    tiny.invent(experiment, tmp_path / "results", SCORES)
    parts = markdown(experiment, read_results(tmp_path / "results", experiment)).split("\n\n")
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in parts[2].splitlines()
    ]
    assert header[:3] == ["rows, by name", "metric", "n"]
    # Seeds 0 and 1 are of both: differences 0.09 and 0.09; a pair without two seeds has no line.
    assert [line[:5] for line in lines] == [
        ["better less other", metric, "2", "+0.090", "0.000"] for metric in experiment.primary
    ]
    headline, second = lines
    assert headline[5] == second[5] == "+0.090 to +0.090"
    assert headline[6] and not second[6]


def test_scores_in_percent_have_two_digits(experiment: Experiment, tmp_path: Path) -> None:
    scores = {row: {seed: 100 * score for seed, score in of.items()} for row, of in SCORES.items()}
    tiny.invent(experiment, tmp_path / "results", scores)
    headline = markdown(experiment, read_results(tmp_path / "results", experiment)).split("\n\n")[0]
    found = cells(headline)
    assert found["better"][:6] == ["3", "32.00", "2.00", "+10.00", "2.00", "+5.03 to +14.97"]


def test_shares_of_the_gradient_are_means_over_the_seeds(experiment: Experiment, tmp_path: Path) -> None:
    gradients = {
        "better_0": {"loss_distill_pkd": {"image_backbone": 0.1, "neck": 0.02, "head": None}},
        "better_1": {"loss_distill_pkd": {"image_backbone": 0.3, "neck": 0.02, "head": None}},
        "other_0": {"loss_distill_at": {"image_backbone": 0.0}},
    }
    tiny.invent(experiment, tmp_path / "results", SCORES, gradients=gradients)
    table = markdown(experiment, read_results(tmp_path / "results", experiment)).split("\n\n")[3]
    found = cells(table)
    assert found["gradient at the end, of the detection losses'"] == ["loss", "image_backbone", "neck"]
    assert found["better"] == ["`pkd`", "20 %", "2 %"] and found["other"] == ["`at`", "0 %", "-"]


def test_pictures_have_every_row_that_was_run(experiment: Experiment, tmp_path: Path) -> None:
    tiny.invent(experiment, tmp_path / "results", SCORES)
    results = read_results(tmp_path / "results", experiment)
    left, right = intervals_figure(experiment, results).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["better", "other"]
    means = [line for line in left.lines if line.get_marker() == "o"]
    assert [float(np.ravel(line.get_xdata())[0]) for line in means] == pytest.approx([0.10, 0.0])
    assert right.get_title() == "Car_BEV_easy_R40" and right.get_xlabel() == "difference to plain student"
    curve = curves_figure(experiment, results).axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in curve.lines}
    assert drawn["plain student"] == pytest.approx([0.11, 0.22]) and set(drawn) == set(SCORES) - {
        "none",
        "plain",
    } | {"plain student"}
    for path in write_pictures(experiment, results, tmp_path / "pictures"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_an_experiment_without_results_has_no_table(experiment: Experiment, tmp_path: Path) -> None:
    assert read_results(tmp_path / "results", experiment) == {}
    assert markdown(experiment, {}) == "No run of `tiny.yaml` is finished."


def test_results_of_other_settings_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    tiny.invent(experiment, tmp_path / "results", SCORES)
    common = tiny.content(tmp_path)["overrides"]
    longer = tiny.marked(tmp_path, rows=ROWS, seeds=[0, 1, 2], overrides={**common, "SOLVER.MAX_ITER": 8})
    digests = r"digest [0-9a-f]{16}, but .*tiny\.yaml now gives [0-9a-f]{16}"
    message = rf"better_0\.json was made .*{digests} \(SOLVER.MAX_ITER: 4, now 8\).*--rerun"
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results", longer)
    fewer = tiny.marked(tmp_path, rows=ROWS[:2], seeds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"other_0\.json is the result of no run of .*tiny\.yaml"):
        read_results(tmp_path / "results", fewer)


def test_runs_on_different_worlds_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    tiny.invent(experiment, tmp_path / "results", {"plain": {0: 0.2}})
    (tmp_path / "holdout" / "synthetic.json").write_text("another generator")
    tiny.invent(experiment, tmp_path / "results", {"better": {0: 0.3}})
    with pytest.raises(
        ValueError, match=r"the SHA-256 of .*holdout was \w{16} in the run .*cannot be compared"
    ):
        read_results(tmp_path / "results", experiment)


def test_runs_scored_on_different_scenes_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    tiny.invent(experiment, tmp_path / "results", {"plain": {0: 0.2, 1: 0.3}})
    tiny.invent(experiment, tmp_path / "results", {"better": {0: 0.3, 1: 0.3}}, units=5)
    results = read_results(tmp_path / "results", experiment)
    with pytest.raises(ValueError, match="were scored on different scenes"):
        markdown(experiment, results)
