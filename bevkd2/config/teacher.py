"""The teacher's config inside the student's: read once, embedded in what is dumped."""

from __future__ import annotations

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config.data_formats import stored_classes
from bevkd2.config.defaults import get_cfg, load_config
from bevkd2.config.node import CfgNode

# What the mapper decides once for both models (DESIGN: one geometry for teacher and student).
_SHARED = (
    ("DATASETS", "FORMAT"),
    ("INPUT", "IMAGE_SCALE"),
    ("INPUT", "CAMERAS"),
    ("INPUT", "POINT_RANGE"),
    ("INPUT", "RESIZE_TRAIN"),
    ("INPUT", "RESIZE_TEST"),
    ("INPUT", "AFFINE"),
)


DISTILLER = "Distiller"
"""The meta-architecture around a teacher and a student."""


def is_distillation(cfg: FvcoreNode) -> bool:
    """Returns whether ``cfg`` trains a student from a teacher."""
    return bool(cfg.MODEL.META_ARCHITECTURE == DISTILLER)


def student_config(cfg: FvcoreNode) -> CfgNode:
    """Returns the plain student's config: ``cfg`` with the student's own meta-architecture.

    Args:
        cfg: a distillation's config.

    Raises:
        ValueError: the student would be a Distiller again.
    """
    name = cfg.DISTILL.STUDENT.META_ARCHITECTURE
    if name == DISTILLER:
        raise ValueError(
            f"DISTILL.STUDENT.META_ARCHITECTURE is {name}, expected the student's own, such as BEVFormer"
        )
    student = cfg.clone()
    student.defrost()
    student.MODEL.META_ARCHITECTURE = name
    return student


def resolve_teacher(cfg: FvcoreNode) -> None:
    """Reads ``DISTILL.TEACHER.CONFIG`` with its ``OPTS`` and embeds the result in ``cfg``.

    The result stands in ``DISTILL.TEACHER.RESOLVED``, and CONFIG is emptied, so that a dumped config.yaml
    needs no second file. A config that was dumped so, and names no CONFIG, is left as it is.

    Args:
        cfg: the student's config, not frozen.

    Raises:
        ValueError: teacher and student would need different inputs, or no teacher is named.
    """
    node = cfg.DISTILL.TEACHER
    if node.CONFIG:
        teacher = load_config(node.CONFIG, node.OPTS)
        data = {key: teacher.DATASETS[key] for key in ("FORMAT", "CLASSES")}
        node.RESOLVED = CfgNode(
            {"MODEL": teacher.MODEL.clone(), "INPUT": teacher.INPUT.clone(), "DATASETS": CfgNode(data)}
        )
        node.CONFIG = ""
        node.OPTS = []
    elif not node.RESOLVED:
        raise ValueError("DISTILL.TEACHER.CONFIG is empty; name the teacher's YAML file")
    for section, key in _SHARED:
        ours, theirs = cfg[section][key], node.RESOLVED[section][key]
        if ours != theirs:
            raise ValueError(
                f"{section}.{key}: the teacher's is {theirs}, the student's is {ours}; both see the same "
                "images, so make them equal (DISTILL.TEACHER.OPTS overrides the teacher's)"
            )
    ours, theirs = stored_classes(cfg), stored_classes(node.RESOLVED)
    if ours != theirs:
        raise ValueError(
            f"DATASETS.CLASSES: the teacher's are {', '.join(theirs)}, the student's {', '.join(ours)}; a "
            "label is a class's place, so both need the same names in the same order"
        )


def teacher_config(cfg: FvcoreNode) -> CfgNode:
    """Returns a whole config for the teacher alone: the resolved MODEL, and data, test and seed of ``cfg``.

    Args:
        cfg: the student's config, its teacher resolved.

    Raises:
        KeyError, ValueError: DISTILL.TEACHER.RESOLVED was written by hand and has a wrong key or value.
    """
    teacher = get_cfg()
    teacher.merge_from_other_cfg(cfg.DISTILL.TEACHER.RESOLVED, "DISTILL.TEACHER.RESOLVED")
    for section in ("DATASETS", "DATALOADER", "TEST", "INPUT"):
        teacher[section] = cfg[section].clone()
    teacher.defrost()  # what is cloned from a frozen config is frozen
    teacher.MODEL.BACKBONE.WEIGHTS = ""  # all that WEIGHTS holds comes after it
    teacher.MODEL.WEIGHTS = cfg.DISTILL.TEACHER.WEIGHTS or teacher.MODEL.WEIGHTS
    teacher.MODEL.DEVICE = cfg.MODEL.DEVICE
    teacher.OUTPUT_DIR = cfg.OUTPUT_DIR
    teacher.SEED = cfg.SEED
    return teacher
