"""The student's and the teacher's configs inside a distillation's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bevkd2.config import get_cfg, load_config
from bevkd2.distill import is_distillation, resolve_teacher, student_config, teacher_config
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]


def student(folder: Path, teacher_text: str, extra: str = "") -> Path:
    (folder / "teachers").mkdir()
    (folder / "teachers" / "big.yaml").write_text(teacher_text)
    path = folder / "student.yaml"
    path.write_text(f"DISTILL: {{TEACHER: {{CONFIG: teachers/big.yaml, WEIGHTS: t.pth{extra}}}}}\n")
    return path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_student_is_named_once_in_its_own_file(tmp_path: Path) -> None:
    distil = "MODEL: {META_ARCHITECTURE: Distiller}\n"
    write(
        tmp_path,
        fcos3d="MODEL: {META_ARCHITECTURE: FCOS3D}\n",
        student="_BASE_: fcos3d.yaml\nMODEL: {META_ARCHITECTURE: PGD}\n",
        default="SEED: 1\n",
        structured=distil,
        child="_BASE_: student.yaml\n" + distil,
        grandchild="_BASE_: child.yaml\n" + distil,
        listed="_BASE_: [student.yaml, structured.yaml]\n",
        of_default="_BASE_: [default.yaml, structured.yaml]\n",
    )
    found = {}
    for name in ("child", "grandchild", "listed", "of_default"):
        cfg = load_config(tmp_path / f"{name}.yaml")
        assert cfg.MODEL.META_ARCHITECTURE == "Distiller" and is_distillation(cfg)
        found[name] = student_config(cfg).MODEL.META_ARCHITECTURE
    assert found == {"child": "PGD", "grandchild": "PGD", "listed": "PGD", "of_default": "BEVFormer"}
    plain = load_config(tmp_path / "student.yaml")
    assert plain.DISTILL.STUDENT.META_ARCHITECTURE == "" and not is_distillation(plain)


def test_student_survives_a_dump_the_command_line_and_a_frozen_config(tmp_path: Path) -> None:
    write(tmp_path, student="MODEL: {META_ARCHITECTURE: SMOKE}\n")
    cfg = load_config(tmp_path / "student.yaml", ["MODEL.META_ARCHITECTURE", "Distiller"])
    assert cfg.DISTILL.STUDENT.META_ARCHITECTURE == "SMOKE"
    write(tmp_path, dumped=cfg.dump())
    assert load_config(tmp_path / "dumped.yaml") == cfg
    frozen = load_config(tmp_path / "student.yaml")
    frozen.freeze()
    with pytest.raises(AttributeError):
        frozen.merge_from_list(["MODEL.META_ARCHITECTURE", "Distiller"])
    assert frozen.DISTILL.STUDENT.META_ARCHITECTURE == ""


def test_a_distilled_student_can_be_a_teacher(tmp_path: Path) -> None:
    write(
        tmp_path,
        plain="MODEL: {META_ARCHITECTURE: PGD}\n",
        teacher="_BASE_: plain.yaml\nMODEL: {META_ARCHITECTURE: Distiller}\n",
        pair="_BASE_: plain.yaml\nMODEL: {META_ARCHITECTURE: Distiller}\n"
        "DISTILL: {TEACHER: {CONFIG: teacher.yaml}}\n",
    )
    assert teacher_config(load_config(tmp_path / "pair.yaml")).MODEL.META_ARCHITECTURE == "PGD"


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
    assert again.DISTILL.TEACHER.RESOLVED.MODEL.DEVICE == "auto"  # nothing of the machine is embedded
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


PROGRAM = """
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model

tree = CfgNode.load_yaml_with_base("configs/demo_mono/distill.yaml")  # bevkd2.distill is not imported yet
print(tree["DISTILL"]["STUDENT"]["META_ARCHITECTURE"])
cfg = load_config("configs/demo/distill.yaml")
model = build_model(cfg)
print(type(model).__name__, type(model.student).__name__, type(model.teacher).__name__, cfg.MODEL.DEVICE)
print(cfg.DISTILL.TEACHER.CONFIG.endswith("teacher.yaml"), len(model.methods), len(model.inherited))
"""


def test_a_distillation_is_built_in_three_lines_of_python() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, *lines = done.stdout.splitlines()
    assert first == "PGD"
    assert lines[-2:] == [f"Distiller BEVFormer BEVFormer {device}", "True 3 3"]


def test_a_teacher_with_its_own_input_keeps_its_sizes_and_history(tmp_path: Path) -> None:
    path = student(tmp_path, "INPUT: {IMAGE_SCALE: 0.8, QUEUE_LENGTH: 5, PHOTOMETRIC: False}")
    cfg = load_config(path, ["DISTILL.TEACHER.OWN_INPUT", True])
    resolve_teacher(cfg)
    teacher = teacher_config(cfg).INPUT
    assert (teacher.IMAGE_SCALE, teacher.QUEUE_LENGTH) == (0.8, 5)
    assert teacher.PHOTOMETRIC == cfg.INPUT.PHOTOMETRIC  # the augmentation is the student's
    assert cfg.INPUT.IMAGE_SCALE == 0.5


def test_cameras_are_the_same_even_with_its_own_input(tmp_path: Path) -> None:
    path = student(tmp_path, "INPUT: {CAMERAS: [CAM_FRONT]}")
    cfg = load_config(path, ["DISTILL.TEACHER.OWN_INPUT", True])
    with pytest.raises(ValueError, match=r"INPUT\.CAMERAS: the teacher's is"):
        resolve_teacher(cfg)
