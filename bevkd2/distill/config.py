"""The two configs inside a distillation's: the student's and the teacher's.

The teacher's YAML file is read once and embedded, so that a dumped config needs no second file.
"""

from __future__ import annotations

import yaml
from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config import CfgNode, get_cfg, read_config, stored_classes
from bevkd2.d2 import META_ARCH_REGISTRY
from bevkd2.distill.methods import DISTILL_REGISTRY

TEACHER_KEY = "teacher"
"""Optional key of a training sample: the sample that the teacher gets instead (DISTILL.TEACHER.OWN_INPUT)."""

# What must be the same for both models, and what the teacher may have of its own.
_SHARED = (
    ("DATASETS", "FORMAT"),
    ("INPUT", "CAMERAS"),
    ("INPUT", "POINT_RANGE"),
    ("INPUT", "AFFINE"),
)
_SIZES = (("INPUT", "IMAGE_SCALE"), ("INPUT", "RESIZE_TRAIN"), ("INPUT", "RESIZE_TEST"))
_OWN = ("IMAGE_SCALE", "RESIZE_TRAIN", "RESIZE_TEST", "QUEUE_LENGTH")


def is_distillation(cfg: FvcoreNode) -> bool:
    """Returns whether the class under MODEL.META_ARCHITECTURE is a Distiller, or a subclass of it.

    Args:
        cfg: the config; a name that is not registered is none.
    """
    return is_distiller(cfg.MODEL.META_ARCHITECTURE)


def is_distiller(name: str) -> bool:
    """Returns whether ``META_ARCH_REGISTRY`` has a Distiller, or a subclass of it, under ``name``."""
    from bevkd2.distill.distiller import Distiller  # distiller.py needs this module's functions

    found = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(found, type) and issubclass(found, Distiller)


def student_config(cfg: FvcoreNode) -> CfgNode:
    """Returns the plain student's config: ``cfg`` with the student's own meta-architecture.

    Args:
        cfg: a distillation's config.

    Raises:
        ValueError: the student's architecture is not named, or is a Distiller again.
    """
    name = cfg.DISTILL.STUDENT.META_ARCHITECTURE
    if not name or is_distiller(name):
        raise ValueError(
            f"DISTILL.STUDENT.META_ARCHITECTURE is {name!r}, expected the student's own, such as BEVFormer. "
            "A merge fills it: let the distillation's YAML file inherit (_BASE_) the student's, which names "
            "MODEL.META_ARCHITECTURE, or set the key"
        )
    student: CfgNode = cfg.clone()
    student.defrost()
    student.MODEL.META_ARCHITECTURE = name
    return student


def resolve_teacher(cfg: FvcoreNode) -> None:
    """Reads ``DISTILL.TEACHER.CONFIG`` with its ``OPTS`` and embeds the result in ``cfg``.

    So with every entry of ``DISTILL.MORE_TEACHERS``. The result goes to ``DISTILL.TEACHER.RESOLVED``, and
    CONFIG is emptied. A config that was dumped so, and names no CONFIG, is left as it is.

    Args:
        cfg: a distillation's config, not frozen.

    Raises:
        ValueError: teacher and student would need different inputs, or no teacher is named.
    """
    _resolve(cfg)
    more = [dict(entry) for entry in cfg.DISTILL.MORE_TEACHERS]
    for entry, one in zip(more, more_distillations(cfg).values(), strict=True):
        _resolve(one)
        entry |= {"CONFIG": "", "OPTS": [], "RESOLVED": yaml.safe_load(one.DISTILL.TEACHER.RESOLVED.dump())}
    cfg.DISTILL.MORE_TEACHERS = more


def _resolve(cfg: FvcoreNode) -> None:
    """Resolves ``cfg.DISTILL.TEACHER``, and compares it with the student."""
    node = cfg.DISTILL.TEACHER
    if node.CONFIG:
        teacher = read_config(node.CONFIG, node.OPTS)  # the device is the student's
        if is_distillation(teacher):  # a distilled student teaches
            teacher = student_config(teacher)
        data = {key: teacher.DATASETS[key] for key in ("FORMAT", "CLASSES")}
        node.RESOLVED = CfgNode(
            {"MODEL": teacher.MODEL.clone(), "INPUT": teacher.INPUT.clone(), "DATASETS": CfgNode(data)}
        )
        node.CONFIG = ""
        node.OPTS = []
    elif not node.RESOLVED:
        raise ValueError("DISTILL.TEACHER.CONFIG is empty; name the teacher's YAML file")
    for section, key in _SHARED if node.OWN_INPUT else _SHARED + _SIZES:
        students, teachers = cfg[section][key], node.RESOLVED[section][key]
        if students != teachers:
            own = ", or set DISTILL.TEACHER.OWN_INPUT: True" if (section, key) in _SIZES else ""
            raise ValueError(
                f"{section}.{key}: the teacher's is {teachers}, the student's is {students}; both see the "
                f"same images, so make them equal (DISTILL.TEACHER.OPTS overrides the teacher's){own}"
            )
    students, teachers = stored_classes(cfg), stored_classes(node.RESOLVED)
    if students != teachers:
        raise ValueError(
            f"DATASETS.CLASSES: the teacher's are {', '.join(teachers)}, the student's "
            f"{', '.join(students)}; a label is an index into this list, so both need the "
            "same names in the same order"
        )


def more_distillations(cfg: FvcoreNode) -> dict[str, CfgNode]:
    """Returns, for each of DISTILL.MORE_TEACHERS, the config of the distillation from that teacher alone.

    Args:
        cfg: a distillation's config; not changed.

    Returns:
        By the teacher's name: ``cfg`` whose DISTILL.TEACHER, METHODS and settings of methods are those of the
        entry.

    Raises:
        ValueError: an entry that is no mapping, lacks NAME or METHODS, or repeats a name.
        KeyError: an entry with an unknown key.
    """
    found: dict[str, CfgNode] = {}
    for number, entry in enumerate(cfg.DISTILL.MORE_TEACHERS):
        where = f"DISTILL.MORE_TEACHERS[{number}]"
        if not isinstance(entry, dict) or not entry.get("NAME") or not entry.get("METHODS"):
            raise ValueError(
                f"{where} is {entry!r}, expected a mapping with NAME (a word), METHODS (a list), CONFIG and "
                "WEIGHTS, and what else DISTILL.TEACHER has"
            )
        name = str(entry["NAME"])
        if name in found or not name.isidentifier():
            raise ValueError(f"{where}.NAME is {name!r}, expected a word that no other teacher has")
        one: CfgNode = cfg.clone()
        one.defrost()
        one.DISTILL.MORE_TEACHERS, one.DISTILL.METHODS = [], []
        one.DISTILL.TEACHER = get_cfg().DISTILL.TEACHER
        teacher = {key: value for key, value in entry.items() if key not in ("NAME", "METHODS", "SETTINGS")}
        settings = entry.get("SETTINGS", {})
        nodes = sorted(DISTILL_REGISTRY.get(method).node for method in entry["METHODS"])
        if not isinstance(settings, dict) or set(settings) - set(nodes):
            raise ValueError(
                f"{where}.SETTINGS is {settings!r}, expected a mapping with nodes of its METHODS: "
                f"{', '.join(nodes)}"
            )
        own = {"METHODS": entry["METHODS"], "TEACHER": teacher, **settings}
        one.merge_from_other_cfg(CfgNode({"DISTILL": own}), where)
        found[name] = one
    return found


def teacher_key(name: str) -> str:
    """Returns the key under which a sample holds a teacher's own; the first teacher's name is empty."""
    return f"{TEACHER_KEY}_{name}" if name else TEACHER_KEY


def teacher_config(cfg: FvcoreNode) -> CfgNode:
    """Returns a whole config for the teacher alone: its own MODEL, and data, test and seed of ``cfg``.

    Args:
        cfg: a distillation's config; not changed, its teacher resolved or not.

    Raises:
        ValueError: see :func:`resolve_teacher`, or DISTILL.TEACHER.RESOLVED was written by hand and has a
            wrong value.
        KeyError: DISTILL.TEACHER.RESOLVED has an unknown key.
    """
    if cfg.DISTILL.TEACHER.CONFIG or not cfg.DISTILL.TEACHER.RESOLVED:
        cfg = cfg.clone()
        cfg.defrost()
        resolve_teacher(cfg)
    teacher = get_cfg()
    teacher.merge_from_other_cfg(cfg.DISTILL.TEACHER.RESOLVED, "DISTILL.TEACHER.RESOLVED")
    for section in ("DATASETS", "DATALOADER", "TEST", "INPUT"):
        own = {key: teacher.INPUT[key] for key in _OWN} if section == "INPUT" else {}
        teacher[section] = cfg[section].clone()
        if cfg.DISTILL.TEACHER.OWN_INPUT:
            teacher[section].defrost()
            teacher[section].update(own)
    teacher.defrost()  # what is cloned from a frozen config is frozen
    teacher.MODEL.BACKBONE.WEIGHTS = ""  # MODEL.WEIGHTS is loaded after it and replaces all of it
    teacher.MODEL.WEIGHTS = cfg.DISTILL.TEACHER.WEIGHTS or teacher.MODEL.WEIGHTS
    teacher.MODEL.DEVICE = cfg.MODEL.DEVICE
    teacher.OUTPUT_DIR = cfg.OUTPUT_DIR
    teacher.SEED = cfg.SEED
    return teacher
