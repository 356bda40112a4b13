"""Checkpoints of a training: the plain model's weights, its training's own, and the trainer's state."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fvcore.common.checkpoint import Checkpointer as _FvcoreCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bevkd2.checkpoint.inert import ignored_names
from bevkd2.checkpoint.io import CheckpointFileError, load_file, model_state, replace_atomically, save_file
from bevkd2.checkpoint.published import check_stated_classes
from bevkd2.checkpoint.strict import load_strict
from bevkd2.d2 import comm

_logger = logging.getLogger(__name__)
_TRAINER = "trainer"  # the state of the training
_TRAINED = "trained"  # the weights that the optimizer moves, where ``model`` is an average of them

PERIODIC_FILES = "model_[0-9][0-9][0-9][0-9][0-9][0-9][0-9].pth"
"""Pattern of the checkpoints that a training writes every SOLVER.CHECKPOINT_PERIOD iterations."""

CHECKPOINT_FILES = (
    PERIODIC_FILES,
    "model_final.pth",
    "model_best.pth",
    "model_interrupted.pth",
)
"""Patterns of the checkpoints that a training writes; other files in its folder are the user's own."""


@runtime_checkable
class HasCheckpointParts(Protocol):
    """A model that is more than what should be deployed, such as a student with its distillation adapters."""

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        """Returns modules by the checkpoint's key; ``model`` is the one that is deployed."""
        ...


class Checkpointer(_FvcoreCheckpointer):
    """fvcore's Checkpointer with strict keys and with files that are read safely and written atomically.

    A file holds ``model`` (the deployed model's keys), further parts of the model such as ``distill``
    (adapters), and one entry for each checkpointable, such as ``trainer``. Where an average of the weights is
    kept, ``model`` is the average, and ``trained`` has the weights themselves.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_missing: Sequence[str] = (),
        tag_last: bool = True,
        classes: Sequence[str] = (),
        fixed_classes: Sequence[str] = (),
        **checkpointables: Any,
    ) -> None:
        """Finds the parts of the model, see :class:`HasCheckpointParts`.

        Args:
            model: a model, in DistributedDataParallel or not; see :class:`HasCheckpointParts`.
            save_dir: folder of the checkpoints.
            save_to_disk: by default, on the main process only.
            allow_missing: prefixes of the model's keys that :meth:`load` does not insist on, but where it
                resumes (MODEL.ALLOW_MISSING).
            tag_last: make every file that is saved the one that a resumed training starts from.
            classes: names of the classes in the order of the model's labels, stored with it; a file that
                states others, there or as mmdetection3d does, is refused. Empty: they are fixed, or unknown.
            fixed_classes: names that the data format fixes: not stored, but a file that states others is
                refused.
            checkpointables: objects with ``state_dict`` and ``load_state_dict``.
        """
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        parts = dict(inner.checkpoint_parts()) if isinstance(inner, HasCheckpointParts) else {"model": inner}
        main = parts.pop("model")
        self.allow_missing = tuple(allow_missing)
        self.tag_last = tag_last
        self.classes, self.fixed_classes = list(classes), list(fixed_classes)
        super().__init__(
            main,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **parts,
            **checkpointables,
        )

    def save_average(self, average: nn.Module) -> None:
        """Makes an average of the weights what is saved as ``model``; the weights become ``trained``.

        Args:
            average: a copy of the deployed model, with other weights.
        """
        self.add_checkpointable(_TRAINED, self.model)
        self.model = average

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth``.

        Args:
            name: the file's name without suffix.
            kwargs: further plain values to store, such as ``iteration``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content: dict[str, Any] = {"model": self.model.state_dict()}
        content.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        if self.classes:
            content["classes"] = self.classes
        path = Path(self.save_dir) / f"{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({**content, **kwargs}, path)
        _logger.info("checkpoint saved: %s", path)
        if self.tag_last:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes a file in ``save_dir`` the one that a resumed training starts from.

        Args:
            last_filename_basename: the file's name, without a folder, such as
                ``model_0000999.pth``; whether there is such a file is not checked.
        """
        text = last_filename_basename.encode()
        replace_atomically(Path(self.save_dir) / "last_checkpoint", lambda file: file.write(text))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads the model, every key matched, and the checkpointables.

        Args:
            path: a ``.pth`` or ``.safetensors`` file; empty: nothing is loaded.
            checkpointables: names of those to load; by default all, and then the file must have them, and
                ``allow_missing`` does not apply.

        Returns:
            Entries of the file that nothing asked for.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointFileError: it is damaged, unsafe, or lacks an entry.
            StateDictMismatchError: a key of the model does not match.
            ValueError: the file states other classes, or another order of them.
        """
        if not path:
            _logger.info("no checkpoint is named; the model starts from its initialisation")
            return {}
        return self._restore(load_file(path), path, checkpointables)

    def _restore(
        self, content: dict[str, Any], path: str, checkpointables: list[str] | None
    ) -> dict[str, Any]:
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        absent = [key for key in wanted if key not in content]
        if absent == [_TRAINED]:
            raise CheckpointFileError(
                f"{path} was saved without SOLVER.EMA.ENABLED, so it has no average of the weights; resume "
                "with SOLVER.EMA.ENABLED False, or start a new run from its weights: set MODEL.WEIGHTS and "
                "leave out --resume"
            )
        if absent:
            raise CheckpointFileError(
                f"{path} lacks {', '.join(absent)} (it has {', '.join(map(str, list(content)[:10]))}), so a "
                f"training cannot be resumed from it; to start from its weights, set MODEL.WEIGHTS and leave "
                f"out --resume"
            )
        if objects := ignored_names([content[key] for key in wanted]):
            raise CheckpointFileError(
                f"{path} holds Python objects in {', '.join(wanted)} ({', '.join(objects[:10])}), which are "
                f"not read; a training resumes only from a checkpoint of its own"
            )
        if checkpointables is None and _TRAINED in content and _TRAINED not in wanted:
            raise CheckpointFileError(
                f"{path} was saved with SOLVER.EMA.ENABLED, so its model is an average of the weights that "
                "were trained; resume with SOLVER.EMA.ENABLED True, or start a new run from the average: set "
                "MODEL.WEIGHTS and leave out --resume"
            )
        check_stated_classes(
            content,
            self.classes or self.fixed_classes,
            path,
            fixed=bool(self.fixed_classes),
            parts=[_TRAINER, _TRAINED, *self.checkpointables],
        )
        content.pop("classes", None)
        allowed = () if checkpointables is None else self.allow_missing
        load_strict(self.model, model_state(content, path), path, allowed)
        content.pop("model", None)
        for key in wanted:
            self._load_checkpointable(key, content.pop(key), path)
        _logger.info("loaded %s from %s", ", ".join(["model", *wanted]), path)
        return content

    def _load_checkpointable(self, key: str, state: Any, path: str) -> None:
        target = self.checkpointables[key]
        if isinstance(target, nn.Module):
            if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
                raise CheckpointFileError(f"{path}: its {key} is no state dict, expected tensors by name")
            load_strict(target, state, f"{path}: {key}")
        else:
            try:
                target.load_state_dict(state)
            except ValueError as error:
                raise CheckpointFileError(f"{path}: {error}") from error
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
                raise CheckpointFileError(
                    f"{path}: its {key} cannot be restored ({type(error).__name__}: {error}); a training "
                    "resumes only from a checkpoint of its own"
                ) from error

    def load_last(self, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads the last checkpoint in ``save_dir``.

        Where it is damaged or gone, the newest of the others is used, and the log says so.

        Args:
            checkpointables: see :meth:`load`.

        Returns:
            As :meth:`load`.

        Raises:
            FileNotFoundError, CheckpointFileError: as :meth:`load`, where no other checkpoint can be read.
        """
        content, path = self._read_last()
        return self._restore(content, path, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes by :meth:`load_last`, or loads the model alone from ``path``.

        Args:
            path: the file to load where nothing is resumed; may be empty.
            resume: whether to look for a last checkpoint; where there is none, ``path`` is loaded.

        Returns:
            As :meth:`load`.

        Raises:
            FileNotFoundError, CheckpointFileError: as :meth:`load` and :meth:`load_last`.
        """
        if resume and self.has_checkpoint():
            return self.load_last()
        if resume:
            _logger.warning("nothing to resume: %s has no checkpoint; starting anew", self.save_dir)
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        """Returns whether ``save_dir`` has something to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Returns the path that last_checkpoint names, or one of the checkpoints where it names none.

        Raises:
            CheckpointFileError: ``last_checkpoint`` names anything but a file beside itself.
        """
        if not self.save_dir:
            return ""
        last = Path(self.save_dir, "last_checkpoint")
        name = last.read_text(encoding="utf-8", errors="replace").strip() if last.is_file() else ""
        if name and (name != Path(name).name or name == ".."):
            raise CheckpointFileError(
                f"{self.save_dir}/last_checkpoint names {name!r}, expected the name of a file beside it, "
                f"such as model_0004999.pth; write that name into it, or name a file in MODEL.WEIGHTS"
            )
        if name:
            return str(Path(self.save_dir, name))
        return next(map(str, self._all_files()), "")

    def remove(self, name: str) -> None:
        """Removes a checkpoint, where it is there and this process saves checkpoints.

        Args:
            name: of the file ``<save_dir>/<name>.pth``.
        """
        if self.save_dir and self.save_to_disk:
            Path(self.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def _all_files(self) -> list[Path]:
        found = [path for pattern in CHECKPOINT_FILES for path in Path(self.save_dir).glob(pattern)]
        return sorted(found, reverse=True)

    def _read_last(self) -> tuple[dict[str, Any], str]:
        """Returns the content and the path of the last checkpoint, or of the newest that can be read."""
        last = Path(self.save_dir, "last_checkpoint")
        try:
            if not last.is_file() or not last.read_text(errors="replace").strip():
                raise FileNotFoundError(f"{last} is empty or does not exist")
            return load_file(self.get_checkpoint_file()), self.get_checkpoint_file()
        except (FileNotFoundError, CheckpointFileError) as error:
            newest: tuple[dict[str, Any], str] | None = None
            for path in self._all_files():
                content = self._read_whole(path)
                if content and (newest is None or content["iteration"] > newest[0]["iteration"]):
                    newest = content, str(path)
            if newest is None:
                raise
            _logger.warning(
                "%s. Resuming from %s instead (iteration %d)", error, newest[1], newest[0]["iteration"]
            )
            return newest

    def _read_whole(self, path: Path) -> dict[str, Any] | None:
        """Returns the content of a checkpoint that a training can be resumed from; None for others."""
        try:
            content = load_file(path)
        except (FileNotFoundError, CheckpointFileError):
            return None
        whole = {"model", "iteration", *self.checkpointables} <= set(content)
        return content if whole and isinstance(content["iteration"], int) else None
