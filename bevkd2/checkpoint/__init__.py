"""Weights and checkpoints: read safely, matched strictly, written atomically."""

from bevkd2.checkpoint.checkpointer import Checkpointer, HasCheckpointParts
from bevkd2.checkpoint.io import CheckpointFileError, load_file, load_state, model_state, save_file
from bevkd2.checkpoint.strict import StateDictMismatchError, check_classes, load_strict

__all__ = [
    "CheckpointFileError",
    "Checkpointer",
    "HasCheckpointParts",
    "StateDictMismatchError",
    "check_classes",
    "load_file",
    "load_state",
    "load_strict",
    "model_state",
    "save_file",
]
