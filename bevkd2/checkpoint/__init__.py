"""Weights and checkpoints: read safely, matched strictly, written atomically."""

from bevkd2.checkpoint import import_bevformer, import_fcos3d, import_smoke
from bevkd2.checkpoint.checkpointer import Checkpointer, HasCheckpointParts
from bevkd2.checkpoint.io import CheckpointFileError, load_file, load_state, model_state, save_file
from bevkd2.checkpoint.key_rules import IMPORTER_REGISTRY, ImportReport, KeyRules, register_importer
from bevkd2.checkpoint.published import check_stated_classes
from bevkd2.checkpoint.strict import StateDictMismatchError, check_classes, load_strict

__all__ = [
    "IMPORTER_REGISTRY",
    "CheckpointFileError",
    "Checkpointer",
    "HasCheckpointParts",
    "ImportReport",
    "KeyRules",
    "StateDictMismatchError",
    "check_classes",
    "check_stated_classes",
    "import_bevformer",
    "import_fcos3d",
    "import_smoke",
    "load_file",
    "load_state",
    "load_strict",
    "model_state",
    "register_importer",
    "save_file",
]
