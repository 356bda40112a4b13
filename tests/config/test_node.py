"""Reading YAML: safely, with every key known and every value of its type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.config import CfgNode, get_cfg, load_config, read_config


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("MODEL: {WETGHTS: x.pth}", "MODEL.WETGHTS", "MODEL.WEIGHTS"),
        ("SOLVR: {BASE_LR: 1.0}", "SOLVR", "SOLVER"),
        ("MODEL: {BEVFORMER: {BEV_SHAP: [1, 1]}}", "MODEL.BEVFORMER.BEV_SHAP", "MODEL.BEVFORMER.BEV_SHAPE"),
        ("SOLVER: {5: 1.0}", "SOLVER.5", "SOLVER."),
    ],
)
def test_unknown_key_names_the_file_and_the_nearest_key(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    path = write(tmp_path, "typo.yaml", text)
    with pytest.raises(KeyError) as error:
        load_config(path)
    message = str(error.value)
    assert "typo.yaml" in message and f"unknown config key '{key}'" in message and near in message


def test_unknown_option_names_the_nearest_key() -> None:
    with pytest.raises(
        KeyError, match=r"command line option: unknown config key 'SOLVER\.BASELR'.*SOLVER\.BASE_LR"
    ):
        get_cfg().merge_from_list(["SOLVER.BASELR", "1.0"])
    with pytest.raises(KeyError, match=r"'SOLVER\.BASE_LR\.X'"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR.X", "1.0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {BASE_LR: fast}", r"SOLVER\.BASE_LR: expected float as in 0\.0002, found str 'fast'"),
        ("SOLVER: {MAX_ITER: 1.5}", r"SOLVER\.MAX_ITER: expected int"),
        ("SOLVER: {AMP: {ENABLED: 1}}", r"SOLVER\.AMP\.ENABLED: expected bool"),
        ("MODEL: {WEIGHTS: [a]}", r"MODEL\.WEIGHTS: expected str"),
        (
            "MODEL: {BEVFORMER: {BEV_SHAPE: [50, 50.5]}}",
            r"BEV_SHAPE\[1\]: expected int as in 50, found float",
        ),
        ("DATASETS: {TEST: [1]}", r"DATASETS\.TEST\[0\]: expected str as in 'val', found int 1"),
        ("MODEL: {RESNETS: {DEFORM_ON_PER_STAGE: [1, 0, 0, 0]}}", r"STAGE\[0\]: expected bool"),
        ("MODEL: resnet", r"MODEL is a node of keys, found the value 'resnet'"),
        ("- a\n- b", r"holds a list, expected a mapping"),
        ("DISTILL: {TEACHER: {CONFIG: 5}}", r"TEACHER\.CONFIG: expected str as in '', found int 5"),
        ("_BASE_:\nSEED: 1", r"_BASE_ is empty, expected a path or a list of paths; .*leave"),
        ("_BASE_: ''\nSEED: 1", r"_BASE_ is empty, expected"),
        ("_BASE_: ['']", r"_BASE_ is \[''\], expected"),
        ("_BASE_: {base.yaml: 1}", r"_BASE_ is \{'base\.yaml': 1\}, expected a path"),
        ("_BASE_: [[base.yaml]]", r"_BASE_ is \[\['base\.yaml'\]\], expected a path"),
        (
            "SOLVER: {GAMMA: 0.3}\nSEED: 1\nSOLVER: {MAX_ITER: 5}",
            r"'SOLVER' is there twice, in lines 1 and 3",
        ),
        ('DATASETS: {TRAIN: ("a",)}', r"'\)' ends a tuple: between braces, write \[a, b\]"),
        ("SOLVER: {STEPS: (1, 2)}", r"'2\)' ends a tuple: between braces, write \[a, b\]"),
        ("SOLVER:\n  MAX_ITER: 5\n  MAX_ITER: 6", r"'MAX_ITER' is there twice, in lines 2 and 3"),
        ("MODEL: [", r"is not plain YAML"),
    ],
)
def test_wrong_type_names_file_key_and_both_types(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "wrong.yaml", text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "wrong.yaml" in str(error.value)


def test_wrong_options() -> None:
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"option SOLVER\.MAX_ITER: expected int .* found str 'many'"):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ValueError, match="options come in pairs KEY VALUE, found 1 words"):
        cfg.merge_from_list(["SOLVER.MAX_ITER"])
    with pytest.raises(ValueError, match=r"option SOLVER\.AMP is a node of keys: ENABLED, DTYPE"):
        cfg.merge_from_list(["SOLVER.AMP", "True"])


def test_whole_number_is_a_float_and_list_a_tuple(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, "c.yaml", "SOLVER: {BASE_LR: 1, STEPS: [3, 4]}"), ["SOLVER.GAMMA", "2"])
    assert cfg.SOLVER.BASE_LR == 1.0 and type(cfg.SOLVER.BASE_LR) is float and type(cfg.SOLVER.GAMMA) is float
    assert cfg.SOLVER.STEPS == (3, 4)


def test_items_of_a_list_are_as_those_of_the_default(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-1 as a string
    path = write(
        tmp_path, "c.yaml", "MODEL: {PIXEL_STD: [1, 2.5, 1e-1]}\nTEST: {EXPECTED_RESULTS: [[a, b, 1, 0.1]]}"
    )
    cfg = load_config(path, ["MODEL.FPN.IN_FEATURES", "('res4', 'res5')"])
    assert cfg.MODEL.PIXEL_STD == [1.0, 2.5, 0.1] and {type(v) for v in cfg.MODEL.PIXEL_STD} == {float}
    assert cfg.TEST.EXPECTED_RESULTS == [["a", "b", 1, 0.1]] and cfg.MODEL.FPN.IN_FEATURES == ["res4", "res5"]


def test_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_bytes(b"SEED: \xff\xfe")
    with pytest.raises(ValueError, match=r"weights\.yaml is not plain YAML"):
        load_config(tmp_path / "weights.yaml")


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.system ['touch {sprung}']",
        "!!python/object/new:os.system ['touch {sprung}']",
        "!!python/name:os.system",
        "!!python/object/apply:subprocess.call [['touch', '{sprung}']]",
    ],
)
def test_python_tags_are_refused_and_nothing_is_executed(tmp_path: Path, payload: str) -> None:
    sprung = tmp_path / "sprung"
    base = write(tmp_path, "evil.yaml", f"OUTPUT_DIR: {payload.format(sprung=sprung)}")
    with pytest.raises(ValueError, match=r"(?s)evil\.yaml is not plain YAML .*Python tags"):
        load_config(base)
    with pytest.raises(ValueError, match=r"evil\.yaml is not plain YAML"):
        load_config(write(tmp_path, "child.yaml", "_BASE_: evil.yaml"))
    with pytest.raises(ValueError, match="allow_unsafe=True is refused"):
        get_cfg().merge_from_file(str(base), allow_unsafe=True)
    with pytest.raises(ValueError, match="allow_unsafe=True is refused"):
        CfgNode.load_yaml_with_base(str(base), allow_unsafe=True)
    assert not sprung.exists()


def test_the_payload_runs_with_unsafe_load(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {sprung}']")
    assert sprung.exists(), "the payload must be live, or the test above shows nothing"


def test_option_is_not_evaluated(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    code = f"__import__('os').system('touch {sprung}')"
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", code])
    assert code == cfg.OUTPUT_DIR and not sprung.exists()


def test_bases_are_merged_in_order_and_relative_to_their_file(tmp_path: Path) -> None:
    write(tmp_path, "base/a.yaml", "SOLVER: {MAX_ITER: 1, GAMMA: 0.3}\nSEED: 1")
    write(tmp_path, "base/b.yaml", "_BASE_: a.yaml\nSOLVER: {MAX_ITER: 2}\nSEED: 2")
    write(tmp_path, "c.yaml", "SEED: 3")
    cfg = load_config(
        write(tmp_path, "top/top.yaml", "_BASE_: [../base/b.yaml, ../c.yaml]\nOUTPUT_DIR: here")
    )
    assert (cfg.SOLVER.GAMMA, cfg.SOLVER.MAX_ITER, cfg.SEED, cfg.OUTPUT_DIR) == (0.3, 2, 3, "here")


def test_a_wrong_value_is_in_the_file_that_is_named(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "SOLVER: {MAX_ITER: many}\nMODEL: {FPN: {OUT_CHANNELS: 64}}")
    path = write(tmp_path, "run.yaml", "_BASE_: base.yaml\nSEED: 3")
    with pytest.raises(ValueError, match=r"base\.yaml: SOLVER\.MAX_ITER: expected int"):
        get_cfg().merge_from_file(str(path))
    write(tmp_path, "run.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 5}\nMODEL: {FPN: {OUT_CHANELS: 1}}")
    with pytest.raises(KeyError, match=r"run\.yaml: unknown config key 'MODEL\.FPN\.OUT_CHANELS'"):
        get_cfg().merge_from_file(str(path))
    write(tmp_path, "run.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 5}")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.SOLVER.MAX_ITER == 5


@pytest.mark.parametrize(
    "value",
    [
        "2020-99-99",
        "2020-01-01",
        "!!set {a}",
        "!!binary aGk=",
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!timestamp x",
    ],
)
def test_values_that_their_tags_do_not_fit_are_named(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "run.yaml", f"SEED: {value}")
    with pytest.raises(ValueError, match=r"run\.yaml is not plain YAML"):
        get_cfg().merge_from_file(str(path))


def test_cycle_of_bases_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "_BASE_: b.yaml")
    path = write(tmp_path, "b.yaml", "_BASE_: a.yaml")
    with pytest.raises(ValueError, match=r"b\.yaml is its own _BASE_: .*b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        load_config(path)


def test_diamond_of_bases_is_no_cycle(tmp_path: Path) -> None:
    write(tmp_path, "root.yaml", "SEED: 5")
    for name in ("left", "right"):
        write(tmp_path, f"{name}.yaml", "_BASE_: root.yaml")
    assert load_config(write(tmp_path, "d.yaml", "_BASE_: [left.yaml, right.yaml]")).SEED == 5


def test_absent_file_and_absent_base(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config file .*none\.yaml does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist; it is the _BASE_ of .*/a\.yaml"):
        load_config(write(tmp_path, "a.yaml", "_BASE_: gone.yaml"))


@pytest.mark.parametrize("text", ["", "\n", "null", "# SEED: 3"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    """It may have been cut off, and would change the values of a config silently."""
    write(tmp_path, "base.yaml", text)
    path = write(tmp_path, "run.yaml", "_BASE_: base.yaml\nSEED: 3")
    with pytest.raises(ValueError, match=r"config file .*base\.yaml is empty"):
        get_cfg().merge_from_file(str(path))


def test_the_home_folder_of_nobody_does_not_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "_BASE_: ~nobody-has-this-name/base.yaml")
    with pytest.raises(FileNotFoundError, match=r"~nobody-has-this-name/base\.yaml does not exist"):
        get_cfg().merge_from_file(str(path))


def test_failed_merge_changes_nothing(tmp_path: Path) -> None:
    cfg = get_cfg()
    with pytest.raises(KeyError):
        cfg.merge_from_file(str(write(tmp_path, "a.yaml", "SEED: 9\nNO_SUCH: 1")))
    assert cfg == get_cfg()


def leaves(node: CfgNode, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return found


LEAVES = leaves(get_cfg())


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 3
    if isinstance(value, str):
        return value + "_x"
    return type(value)([*value, *value])


@settings(max_examples=25)  # an example takes a tenth of a second
@given(keys=st.sets(st.sampled_from(LEAVES), max_size=12))
def test_dumped_config_is_read_back_unchanged(
    keys: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cfg = get_cfg()
    for key in keys:
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[leaf] = changed(node[leaf])
    # CONFIG is a path relative to the file that names it; a set-up run has none.
    cfg.DISTILL.TEACHER.CONFIG = ""
    path = write(tmp_path_factory.mktemp("dump"), "config.yaml", cfg.dump())
    assert read_config(path) == cfg


def test_frozen_config_refuses_changes() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 4
    with pytest.raises(AttributeError):
        cfg.merge_from_list(["SEED", 4])
    with pytest.raises(AttributeError):
        cfg.merge_from_other_cfg(CfgNode({"SEED": 4}))
    assert cfg.SEED == -1


def test_a_string_that_looks_like_a_number_stays_a_string(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", "2026"])
    assert cfg.OUTPUT_DIR == "2026"
    (tmp_path / "c.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "c.yaml"))
    assert again == cfg


@pytest.mark.parametrize("on_the_command_line", [False, True])
def test_a_key_that_is_gone_names_the_new_one(tmp_path, on_the_command_line):
    cfg, limits = get_cfg(), [-9.0, -9.0, -1.0, 9.0, 9.0, 1.0]
    path = write(tmp_path, "old.yaml", f"MODEL: {{BEVFORMER: {{PC_RANGE: {limits}}}}}")
    message = r"'MODEL\.BEVFORMER\.PC_RANGE' does not exist any more: use INPUT\.POINT_RANGE"
    with pytest.raises(KeyError, match=message):
        if on_the_command_line:
            cfg.merge_from_list(["MODEL.BEVFORMER.PC_RANGE", str(limits)])
        else:
            cfg.merge_from_file(str(path))


def test_a_list_of_words_on_the_command_line_needs_no_quotes():
    cfg = get_cfg()
    cfg.merge_from_list(["DISTILL.METHODS", "[PKD, BEVResponse]", "DISTILL.INHERIT.INIT_PARAMS", "[neck]"])
    assert cfg.DISTILL.METHODS == ["PKD", "BEVResponse"]
    assert cfg.DISTILL.INHERIT.INIT_PARAMS == ["neck"]
    with pytest.raises(ValueError, match=r"expected list .* found str '\[PKD, BEVResponse'"):
        cfg.merge_from_list(["DISTILL.METHODS", "[PKD, BEVResponse"])


def test_a_value_that_is_the_next_key_is_a_missing_value() -> None:
    cfg = get_cfg()
    with pytest.raises(
        ValueError, match=r"OUTPUT_DIR has no value: DATASETS\.ROOT, which follows it, is a key"
    ):
        cfg.merge_from_list(["OUTPUT_DIR", "DATASETS.ROOT", "SEED", "1"])
    cfg.merge_from_list(["OUTPUT_DIR", "DATASETS.NOWHERE"])
    assert cfg.OUTPUT_DIR == "DATASETS.NOWHERE"


def _laughs(first: str, following: str) -> str:
    lines = [f"L0: &a0 {first}"]
    lines += [f"L{i}: &a{i} {following.replace('*', f'*a{i - 1}')}" for i in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_laughs("[1, 2]", "[*, *]"), "more than 100000 values"),
        (_laughs("{a: 1}", "{b: *, c: *}"), "more than 100000 values"),
        (_laughs("{a: 1}", "{<<: [*, *]}"), "more than 100000 values"),
        ("A: &a [1, *a]", "an alias within what it stands for"),
        ("A: " + "[" * 700 + "]" * 700, "recursion"),
    ],
)
def test_a_few_lines_do_not_stand_for_billions_of_values(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "laughs.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)laughs\.yaml is not plain YAML .*{message}"):
        get_cfg().merge_from_file(str(path))


def test_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text("MODEL: {FPN: &fpn {OUT_CHANNELS: 64}}\nSOLVER: {STEPS: &s [3, 4]}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.FPN.OUT_CHANNELS == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SOLVER:\n  MAX_ITER: 010",
            r"line 2: SOLVER\.MAX_ITER is written 010, .* as 8 .*write 10 or 8, or '010'",
        ),
        (
            "SOLVER: {BASE_LR: -0_20}",
            r"line 1: SOLVER\.BASE_LR is written -0_20, .* as -16 .*write -20 or -16",
        ),
        ("SOLVER: {MAX_ITER: 1:30}", r"line 1: SOLVER\.MAX_ITER is written 1:30, .* as 90 \(of base 60"),
        ("SOLVER: {BASE_LR: 1:30.5}", r"SOLVER\.BASE_LR is written 1:30\.5, .* as 90\.5"),
        ("SOLVER: {STEPS: [8, 010]}", r"SOLVER\.STEPS\[1\] is written 010"),
        ("OUTPUT_DIR: 12:30", "OUTPUT_DIR is written 12:30, .*or '12:30' with the quotes if it is text"),
        ("SOLVER: {STEPS: '[010, 20]'}", r"SOLVER\.STEPS\[0\] is written 010"),
        ("OUTPUT_DIR: no", "OUTPUT_DIR: expected str .*, found bool False; .*only between quotes"),
        ("SOLVER: {AMP: {ENABLED: 'yes'}}", "expected bool .*, found str 'yes'; write True or False"),
        ("SOLVER: {MAX_ITER: 1e3}", r"SOLVER\.MAX_ITER: expected int as in 0, found float 1000\.0"),
    ],
)
def test_numbers_and_words_that_yaml_reads_otherwise_are_named(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"run\.yaml.*{message}"):
        read_config(write(tmp_path, "run.yaml", text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1_000", 1000), ("0x10", 16), ("0o17", 15), ("07", 7), ("+5", 5), ("00", 0)],
)
def test_numbers_that_mean_what_they_say_are_read(tmp_path: Path, text: str, value: int) -> None:
    found = read_config(write(tmp_path, "run.yaml", f"SOLVER: {{MAX_ITER: {text}}}")).SOLVER.MAX_ITER
    assert found == value


def test_texts_between_quotes_and_switches_are_read(tmp_path: Path) -> None:
    text = "OUTPUT_DIR: '010'\nDATASETS: {VERSION: '1:30'}\nSOLVER: {AMP: {ENABLED: on}}"
    cfg = read_config(write(tmp_path, "run.yaml", text))
    assert (cfg.OUTPUT_DIR, cfg.DATASETS.VERSION, cfg.SOLVER.AMP.ENABLED) == ("010", "1:30", True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.MAX_ITER", "010", "expected int as in 0, found str '010'"),
        ("SOLVER.STEPS", "[010, 20]", r"STEPS\[0\] is written 010, which YAML reads as 8"),
        ("SOLVER.STEPS", "[1:30]", "is written 1:30, which YAML reads as 90"),
        ("SOLVER.AMP.ENABLED", "yes", "found str 'yes'; write True or False"),
    ],
)
def test_misleading_numbers_of_the_command_line_are_named(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"command line option .*{message}"):
        read_config("", [key, value])
    found = read_config("", ["OUTPUT_DIR", value]).OUTPUT_DIR
    assert found == value


@pytest.mark.parametrize(
    "row", ["[bbox, mAP, 1e-1, 0.01]", "[bbox, mAP, 0.1]", "bbox", "[1, mAP, 0.1, 0.01]"]
)
def test_expected_results_that_cannot_be_compared_are_named(tmp_path: Path, row: str) -> None:
    path = write(tmp_path, "run.yaml", f"TEST: {{EXPECTED_RESULTS: [{row}]}}")
    message = "TEST.EXPECTED_RESULTS has .*expected .task, metric, score, tolerance"
    with pytest.raises(ValueError, match=rf"run\.yaml: {message}"):
        read_config(path)
    with pytest.raises(ValueError, match=f"command line option: {message}"):
        read_config("", ["TEST.EXPECTED_RESULTS", f"[{row}]"])
