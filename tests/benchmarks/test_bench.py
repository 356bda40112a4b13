"""Tests the measurements, requirements and files of bench.py, but not the times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, limits, report
from benchmarks.harness import Contest, Contestant, Options, Times, Watch, Work
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]

FAMILIES = {
    "Deformable attention": {"temporal, local", "spatial, local", "decoder, local", "tiny, local"},
    "Spatial cross-attention, ragged": {"rig, op", "rig, layer"},
    "Distillation losses": {
        "FPN, L2, pixel mask",
        "BEV, L2, pixel mask",
        "BEV response",
        "attention weights",
    },
    "Rotated boxes": {"intersection, scene", "3D IoU, scene", "NMS, 200 boxes", "NMS, 10000 unrotated"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs a quick benchmark; returns its files and its output."""
    out = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.bench",
            "--quick",
            "--threads",
            "1",
            "--out",
            str(out),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (table,), (data,) = out.glob("*.md"), out.glob("*.json")
    return {"table": table.read_text(), "report": json.loads(data.read_text()), "printed": done.stdout}


@pytest.mark.slow
def test_a_run_names_its_machine_and_its_limits(written: dict[str, Any]) -> None:
    found = written["report"]
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["threads"] == 1
    assert found["limits"]["copy_bytes_per_second"] > 0 and found["limits"]["flops_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_cases(written: dict[str, Any], family: str) -> None:
    rows = [row for row in written["report"]["rows"] if row["family"] == family]
    assert FAMILIES[family] <= {row["case"] for row in rows}
    assert f"## {family}" in written["table"] and written["table"].strip() == written["printed"].strip()
    for row in rows:
        assert row["ours_ms"] > 0 and row["required"] is None and not row["missed"]
        if row["baseline_ms"] is not None:
            assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])


@pytest.mark.slow
def test_every_kind_of_attention_has_both_baselines(written: dict[str, Any]) -> None:
    rows = [row for row in written["report"]["rows"] if row["family"] == "Deformable attention"]
    for case in FAMILIES["Deformable attention"]:
        found = {(row["baseline"], row["part"]) for row in rows if row["case"] == case}
        names = ("grid_sample", "torch-ms-deform-attn")
        assert found == {(name, part) for name in names for part in ("forward", "backward")}


def contest(ours: float, theirs: float, **keywords: Any) -> tuple[Contest, dict[str, dict[str, Times]]]:
    """A case whose times are given in seconds."""
    times = {"ours": {"forward": Times([[ours], [ours]])}, "theirs": {"forward": Times([[theirs], [theirs]])}}
    return Contest("family", "case", "float32", make=list, **keywords), times


def test_a_missed_ratio_is_marked() -> None:
    case, times = contest(1.0, 1.5, required={("theirs", "forward"): 2.0})
    (row,) = report.make_rows(case, times, {}, None)
    assert row.ratio == 1.5 and row.missed == ["case (float32), forward: 1.50 times theirs, required 2"]
    assert "1.50 (1.50 to 1.50), missed" in report.table([row])


def test_a_ratio_that_is_reached_is_not_marked() -> None:
    case, times = contest(1.0, 2.0, required={("theirs", "forward"): 2.0})
    (row,) = report.make_rows(case, times, {}, None)
    assert not row.missed and "missed" not in report.table([row])


def test_too_much_memory_is_marked() -> None:
    case, times = contest(1.0, 2.0, memory_limit_mib=10.0)
    (row,) = report.make_rows(case, times, {"ours": 11.0, "theirs": 30.0}, None)
    assert row.missed == ["case (float32): 11.0 MiB, at most 10.0 allowed"]
    assert "**11, missed**" in report.table([row])


def test_more_memory_than_the_baseline_is_marked_if_limited() -> None:
    case, times = contest(1.0, 2.0, less_memory_than="theirs")
    (row,) = report.make_rows(case, times, {"ours": 11.0, "theirs": 10.0}, None)
    assert row.missed
    (row,) = report.make_rows(case, times, {"ours": 9.0, "theirs": 10.0}, None)
    assert not row.missed


def test_a_missing_baseline_has_a_row_that_says_so() -> None:
    case, times = contest(
        1.0, 2.0, missing={"absent": "not installed: no wheel"}, required={("absent", "forward"): 2.0}
    )
    _, row = report.make_rows(case, times, {}, None)
    assert row.baseline == "absent" and row.ratio is None and not row.missed
    assert row.reason == "not installed: no wheel"
    assert "| absent | not installed |" in report.table([row])


def test_share_is_relative_to_the_slower_limit() -> None:
    case, times = contest(1.0, 2.0, work={"forward": Work(bytes=50.0, flops=10.0)})
    (row,) = report.make_rows(case, times, {}, limits.Limits(100.0, 1000.0))
    assert (row.limit, row.share_of_limit) == ("copy", 0.5)
    (row,) = report.make_rows(case, times, {}, limits.Limits(1000.0, 100.0))
    assert (row.limit, row.share_of_limit) == ("FLOP", 0.1)


def test_implementations_run_in_turns_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def contestant(name: str) -> Contestant:
        def run(watch: Watch) -> torch.Tensor:
            order.append(name)
            return watch("forward", lambda: torch.ones(1))

        return Contestant(name, run)

    monkeypatch.setattr(harness, "LEAST_ROUNDS", 3)
    case = Contest("f", "c", "float32", make=lambda: [contestant("a"), contestant("b")])
    times = harness.compare(case, Options(threads=torch.get_num_threads()), budget=0.0)
    assert order[:4] == ["a", "a", "b", "b"]  # the warm-up
    turns = [name for i, name in enumerate(order[4:]) if i == 0 or order[3 + i] != name]
    assert turns == ["a", "b", "a", "b"]  # a b, b a, a b, each perhaps several times in its turn
    assert len(times["a"]["forward"].rounds) == len(times["b"]["forward"].rounds) == 3


def test_implementations_with_different_results_are_refused() -> None:
    def contestant(name: str, value: float) -> Contestant:
        return Contestant(name, lambda watch: watch("forward", lambda: torch.full((1,), value)))

    case = Contest("f", "c", "float32", make=lambda: [contestant("a", 1.0), contestant("b", 1.1)])
    with pytest.raises(RuntimeError, match=r"c \(float32\): b differs from a by 1.00e-01"):
        harness.compare(case, Options(quick=True, threads=torch.get_num_threads()), budget=0.0)


def test_a_ratio_is_of_medians_and_its_quartiles_are_of_rounds() -> None:
    ours, theirs = Times([[1.0, 3.0], [2.0]]), Times([[4.0], [6.0]])
    assert theirs.ratios(ours) == (2.5, 2.25, 2.75)


def test_short_parts_are_called_several_times() -> None:
    watch = Watch("cpu")
    calls: list[int] = []
    for _ in range(2):
        watch("forward", lambda: calls.append(1))
    watch.settle()
    before = len(calls)
    watch("forward", lambda: calls.append(1))
    assert len(calls) - before > 1 and watch.rounds["forward"][-1][-1] < harness.SHORTEST


def test_machine_name_is_a_file_name() -> None:
    from benchmarks.machine import machine_name

    name = machine_name("cpu")
    assert name.endswith(f"_{len(os.sched_getaffinity(0))}_cores")
    assert name.replace("_", "").isalnum() and name.islower()


def test_a_step_is_a_table_with_the_ops_share() -> None:
    parts = {part: {"seconds": 0.5, "peak_memory_mib": 80.0} for part in report.STEP_PARTS}
    text = report.steps_table({"demo": {**parts, "share_of_ops": 0.08, "share_of_plain_forms": 0.55}})
    assert "| demo | distillation step, with the ops | 0.5 | 8 % | 80 |" in text
    assert "| demo | distillation step, plain torch | 0.5 | 55 % | 80 |" in text
    assert "| demo | student step | 0.5 |  | 80 |" in text
