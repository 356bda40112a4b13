"""The teacher's config inside the student's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.config import get_cfg, load_config, resolve_teacher, teacher_config


def student(folder: Path, teacher_text: str, extra: str = "") -> Path:
    (folder / "teachers").mkdir()
    (folder / "teachers" / "big.yaml").write_text(teacher_text)
    path = folder / "student.yaml"
    path.write_text(f"DISTILL: {{TEACHER: {{CONFIG: teachers/big.yaml, WEIGHTS: t.pth{extra}}}}}\n")
    return path


def test_teacher_is_found_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = student(tmp_path, "MODEL: {RESNETS: {DEPTH: 101}}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "child").mkdir()
    child = tmp_path / "child" / "child.yaml"
    child.write_text("_BASE_: ../student.yaml\nSEED: 1")
    for config in (path, child):
        cfg = load_config(config)
        resolve_teacher(cfg)
        assert cfg.DISTILL.TEACHER.RESOLVED.MODEL.RESNETS.DEPTH == 101
        assert cfg.MODEL.RESNETS.DEPTH == 50


def test_dumped_config_needs_no_second_file(tmp_path: Path) -> None:
    path = student(tmp_path, "MODEL: {RESNETS: {DEPTH: 101}}", ", OPTS: [MODEL.FPN.NUM_OUTS, 2]")
    cfg = load_config(path)
    resolve_teacher(cfg)
    dumped = tmp_path / "config.yaml"
    dumped.write_text(cfg.dump())
    (tmp_path / "teachers" / "big.yaml").unlink()
    again = load_config(dumped)
    resolve_teacher(again)
    assert again == cfg
    teacher = teacher_config(again)
    assert teacher.MODEL.RESNETS.DEPTH == 101 and teacher.MODEL.FPN.NUM_OUTS == 2
    assert Path(teacher.MODEL.WEIGHTS).name == "t.pth"


def test_embedded_teacher_is_checked_and_completed_like_a_file(tmp_path: Path) -> None:
    cfg = load_config(student(tmp_path, "MODEL: {RESNETS: {DEPTH: 101}}"))
    resolve_teacher(cfg)
    del cfg.DISTILL.TEACHER.RESOLVED.MODEL["TIMM"]  # as a config.yaml of before this key lacks it
    assert teacher_config(cfg).MODEL.TIMM.NAME == "" and teacher_config(cfg).MODEL.RESNETS.DEPTH == 101
    cfg.DISTILL.TEACHER.RESOLVED.MODEL.BACKBON = "x"
    with pytest.raises(KeyError, match=r"DISTILL\.TEACHER\.RESOLVED: unknown config key 'MODEL\.BACKBON'"):
        teacher_config(cfg)


def test_teacher_shares_data_device_and_seed_with_the_student(tmp_path: Path) -> None:
    cfg = load_config(
        student(tmp_path, "SEED: 5"), ["DATASETS.ROOT", "elsewhere", "SEED", 3, "MODEL.DEVICE", "cpu"]
    )
    resolve_teacher(cfg)
    teacher = teacher_config(cfg)
    assert (teacher.DATASETS.ROOT, teacher.SEED, teacher.MODEL.DEVICE) == ("elsewhere", 3, "cpu")


def test_teacher_of_other_images_is_an_error(tmp_path: Path) -> None:
    cfg = load_config(student(tmp_path, "INPUT: {IMAGE_SCALE: 0.8}"))
    with pytest.raises(ValueError, match=r"INPUT\.IMAGE_SCALE: the teacher's is 0\.8, the student's is 0\.5"):
        resolve_teacher(cfg)


def test_no_teacher_and_absent_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DISTILL\.TEACHER\.CONFIG is empty"):
        resolve_teacher(get_cfg())
    cfg = get_cfg()
    cfg.DISTILL.TEACHER.CONFIG = str(tmp_path / "gone.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        resolve_teacher(cfg)


def test_wrong_key_in_the_teachers_config_is_named(tmp_path: Path) -> None:
    cfg = load_config(student(tmp_path, "MODEL: {BACKBON: {NAME: x}}"))
    with pytest.raises(KeyError, match=r"big\.yaml: unknown config key 'MODEL\.BACKBON'.*MODEL\.BACKBONE"):
        resolve_teacher(cfg)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    mono = "DATASETS: {FORMAT: kitti, CLASSES: [Car, Pedestrian]}\n"
    path = student(tmp_path, mono)
    cfg = load_config(path, ["DATASETS.FORMAT", "kitti", "DATASETS.CLASSES", ["Pedestrian", "Car"]])
    with pytest.raises(ValueError, match="teacher's are Car, Pedestrian, the student's Pedestrian, Car"):
        resolve_teacher(cfg)
    cfg.DATASETS.CLASSES = ["Car", "Pedestrian"]
    resolve_teacher(cfg)
    assert teacher_config(cfg).DATASETS.CLASSES == ["Car", "Pedestrian"]
