"""Options of the config on the command line of every tool."""

from __future__ import annotations

import argparse
import re

import pytest

from bevkd2.engine.options import ConfigArgumentParser


def parser(files: bool = False) -> ConfigArgumentParser:
    made = ConfigArgumentParser()
    made.add_argument("--config-file", default="")
    made.add_argument("--resume", action="store_true")
    made.add_argument("--score", type=float)
    made.add_argument("--import", dest="plugins", action="append", default=[])
    if files:
        made.add_argument("input")
        made.add_argument("output")
    made.add_argument("opts", nargs="*" if files else argparse.REMAINDER)
    return made


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("SOLVER.MAX_ITER 5 --resume", {"resume": True, "opts": ["SOLVER.MAX_ITER", "5"]}),
        ("A.B 1 --config-file c.yaml D 2", {"config_file": "c.yaml", "opts": ["A.B", "1", "D", "2"]}),
        ("A.B 1 --conf=c.yaml", {"config_file": "c.yaml", "opts": ["A.B", "1"]}),
        ("A.B -1e-4 C -.5", {"opts": ["A.B", "-1e-4", "C", "-.5"]}),
        ("--score -1e-3 A.B --not-a-flag", {"score": -1e-3, "opts": ["A.B", "--not-a-flag"]}),
        ("A.B=-1e-4 C=x=y D=", {"opts": ["A.B", "-1e-4", "C", "x=y", "D", ""]}),
        ("--import a A 1 --import b", {"plugins": ["a", "b"], "opts": ["A", "1"]}),
        ("", {"opts": []}),
    ],
)
def test_pairs_and_flags_come_in_any_order(line: str, expected: dict[str, object]) -> None:
    found = vars(parser().parse_args(line.split()))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        "in.pth out.pth A.B -1e-4 --resume",
        "--resume in.pth out.pth A.B -1e-4",
        "in.pth --resume out.pth A.B=-1e-4",
    ],
)
def test_files_come_before_the_pairs(line: str) -> None:
    found = parser(files=True).parse_args(line.split())
    assert (found.input, found.output, found.resume) == ("in.pth", "out.pth", True)
    assert found.opts == ["A.B", "-1e-4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.MAX_ITER", "--resume"], "the option SOLVER.MAX_ITER has no value: --resume follows it"),
        (["A", "1", "SOLVER.MAX_ITER"], "the option SOLVER.MAX_ITER has no value"),
        (["--opts", "A", "1"], "--opts is not known; options of the config are pairs KEY VALUE"),
        (["--cfg-options", "A=1"], "--cfg-options is not known"),
        (["M", "[a,", "b]"], "'b]' is no key of the config"),
        (["A", "1", "--nope"], "unrecognized arguments: --nope"),
        (["--nope", "x", "A", "1"], "unrecognized arguments: --nope"),
        (["--OUTPUT_DIR", "x", "A", "2"], "--OUTPUT_DIR is no flag; .* without dashes: OUTPUT_DIR x"),
        (["A", "1", "--SOLVER.MAX_ITER=5"], "--SOLVER.MAX_ITER is no flag; .*: SOLVER.MAX_ITER 5"),
        (["--SEED", "--resume"], "--SEED is no flag; .*: SEED VALUE"),
        (["--score"], "argument --score: expected one argument"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), capsys.readouterr().err)
