"""Weights, and runs to be resumed: small valid ones, how they are read, and what is right."""

from __future__ import annotations

import io
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.checkpoint import Checkpointer, save_file
from bevkd2.config import CfgNode
from bevkd2.engine import train
from tests.engine.toys import ToyDetector, build_toy_loader, toy_cfg
from tests.fuzz import mutate, reference
from tests.fuzz.mutate import Mutation
from tests.fuzz.validity import Result, same_shape, strict_json


class _Net(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


def write_weights(suffix: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        torch.manual_seed(0)
        state = _Net().state_dict()
        names = {"classes": ["Car", "Van"]}
        save_file({**state, **names} if suffix == "safetensors" else {"model": state, **names, "note": 1},
                  folder / f"weights.{suffix}")  # fmt: skip

    return prepare


def read_weights(suffix: str) -> Callable[[Path], Result]:
    def read(folder: Path) -> Result:
        torch.manual_seed(1)
        net = _Net()
        Checkpointer(net, classes=["Car", "Van"]).load(str(folder / f"weights.{suffix}"), checkpointables=[])
        state = dict(net.state_dict())
        return {**state, "content": state}

    return read


def expected_weights(suffix: str) -> Callable[[Path], Result]:
    """The tensors of the file in the model's types, by the model's names."""

    def read(folder: Path) -> Result:
        found = reference.tensors(folder / f"weights.{suffix}")
        found = {name.replace("module.", ""): value for name, value in found.items()}
        return {
            name: torch.tensor(np.asarray(found[name]) if name in found else 0).to(value.dtype)
            for name, value in _Net().state_dict().items()
        }

    return read


def same_tensors(old: bytes, new: bytes) -> bool:
    """Whether a file of torch.save is whole, and has other values, but the same keys, shapes and types."""
    try:
        with zipfile.ZipFile(io.BytesIO(new)) as archive:
            if archive.testzip():
                return False
        contents = [torch.load(io.BytesIO(data), weights_only=True) for data in (old, new)]
    except Exception:  # noqa: BLE001  (whatever torch raises)
        return False
    contents = [content.get("model", content) if "note" in content else content for content in contents]
    return same_shape(*contents)


def same_safetensors(old: bytes, new: bytes) -> bool:
    """A safetensors file has no checksum: of the same header, all numbers are valid."""
    length = int.from_bytes(old[:8], "little") + 8
    if old[:length] == new[:length]:
        return len(old) == len(new)
    headers = [data[8 : int.from_bytes(data[:8], "little") + 8] for data in (old, new)]
    try:
        trees = [strict_json(header) for header in headers]
    except ValueError:
        return False
    for tree in trees:
        tree.pop("__metadata__", None)
    return sorted(map(str, trees[0].values())) == sorted(map(str, trees[1].values()))


def write_run(folder: Path) -> None:
    """A run of the toy model that was interrupted after iteration 3 of 6."""

    class InterruptionError(Exception):
        pass

    def loader(cfg: CfgNode, start_iter: int = 0) -> Iterator[Any]:
        batches = iter(build_toy_loader(cfg, start_iter))
        yield from (next(batches) for _ in range(4))
        raise InterruptionError

    torch.manual_seed(0)
    cfg = _run_config(folder)
    try:
        train(cfg, ToyDetector(cfg), build_loader=loader, evaluate=_evaluate)
    except InterruptionError:
        return


def _run_config(folder: Path) -> CfgNode:
    return toy_cfg(folder, "SOLVER.CHECKPOINT_PERIOD", 2)


def _evaluate(cfg: CfgNode, model: torch.nn.Module) -> Any:
    return {"toy": {"score": float(sum(p.detach().sum() for p in model.parameters()))}}


def resume(folder: Path) -> Result:
    work = folder.with_name("resumed")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work)
    torch.manual_seed(1)
    cfg = _run_config(work)
    model = ToyDetector(cfg)
    train(cfg, model, resume=True, build_loader=build_toy_loader, evaluate=_evaluate)
    return {"weights": model.state_dict()}


def mutate_run(rng: random.Random, data: bytes) -> Mutation:
    return (mutate.mutate_checkpoint if data[:2] == b"PK" else mutate.mutate_bytes)(rng, data)
