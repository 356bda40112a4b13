"""Weights and checkpoints: read safely, matched strictly, written atomically."""

from bevkd2.checkpoint.checkpointer import Checkpointer, HasCheckpointParts
from bevkd2.checkpoint.io import CheckpointFileError, load_file, load_state, save_file
from bevkd2.checkpoint.strict import StateDictMismatchError, load_strict

__all__ = [
    "CheckpointFileError",
    "Checkpointer",
    "HasCheckpointParts",
    "StateDictMismatchError",
    "load_file",
    "load_state",
    "load_strict",
    "save_file",
]
