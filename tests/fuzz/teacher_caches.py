"""Caches of teachers (``DISTILL.TEACHER.CACHE``): a small one, how a training reads it, what is right."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bevkd2.distill.teacher_cache import TeacherCache
from bevkd2.modeling.knowledge import Knowledge
from tests.fuzz import reference
from tests.fuzz.checkpoints import same_safetensors
from tests.fuzz.validity import Result

_WANTS = frozenset({"fpn", "fpn_strides", "logits"})
_FIELDS = ("fpn.0", "fpn.1", "logits")
_SAMPLES = [{"sample_id": str(i), "image": torch.full((3, 4, 4), i)} for i in range(4)]


def _run(samples: Sequence[Any]) -> Knowledge:
    """What a teacher would say of the samples."""
    images = torch.stack([sample["image"] for sample in samples]).float()
    return Knowledge(
        fpn=[images.sin(), images[:, :, ::2, ::2].cos()], fpn_strides=[4, 8], logits=images.flatten(1).tan()
    )


def _knowledge(folder: Path) -> list[Knowledge]:
    """Of two batches: the first is compared with the teacher's, the second is taken from the disk."""
    cache = TeacherCache(folder / "cache", "teacher")
    return [
        cache.knowledge(batch, _WANTS, _run, torch.device("cpu")) for batch in (_SAMPLES[:2], _SAMPLES[2:])
    ]


def write_cache(folder: Path) -> None:
    _knowledge(folder)


def read_cache(folder: Path) -> Result:
    """What the losses get of each sample, in an order that the content decides."""
    rows = []
    for knowledge in _knowledge(folder):
        assert knowledge.fpn is not None and knowledge.logits is not None
        fields = (*knowledge.fpn, knowledge.logits)
        rows += [dict(zip(_FIELDS, row, strict=True)) for row in zip(*fields, strict=True)]
    return {"content": rows}


def expected_cache(folder: Path) -> Result:
    """What the files have, or the teacher says where they lack a field."""
    cache = TeacherCache(folder / "cache", "teacher")
    rows = []
    for sample in _SAMPLES:
        path = cache._path(cache._digest(sample))
        stored = reference.compressed_safetensors(path)
        live = _run([sample])
        assert live.fpn is not None and live.logits is not None
        spoken = dict(zip(_FIELDS, (*live.fpn, live.logits), strict=True))
        rows.append({name: stored[name][0] if name in stored else spoken[name][0] for name in _FIELDS})
    return {"content": rows}["content"]  # type: ignore[return-value]


def same_cache(old: bytes, new: bytes) -> bool:
    """Whether the tensors in it have other numbers, but the same shapes and types."""
    try:
        return same_safetensors(*(zlib.decompress(data) for data in (old, new)))
    except zlib.error:
        return False
