"""A model, data and an evaluator small enough to train in milliseconds, behind the real interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode, class_names, get_cfg
from bevkd2.d2 import META_ARCH_REGISTRY, DatasetEvaluator, comm

SIZE = 4  # features of a sample
TOY_OPTIONS = (
    *("SEED", 3, "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "ToyDetector"),
    *("MODEL.BACKBONE.FREEZE_AT", 0),
    *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 0.05, "SOLVER.WARMUP_ITERS", 2),
    *("SOLVER.CHECKPOINT_PERIOD", 3, "TEST.PRINT_PERIOD", 1, "TEST.BEST_METRIC", "toy/score"),
)


class Head(nn.Linear):
    """A layer of our own: torch.compile of torch 2.10 skips a module whose code is torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Backbone, dropout and a head with one output per class; one parameter is frozen."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.image_backbone = nn.Linear(SIZE, 8)
        self.image_backbone.bias.requires_grad_(False)
        self.dropout = nn.Dropout(cfg.MODEL.BEVFORMER.DROPOUT)
        self.head = Head(8, len(class_names(cfg)))

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.image_backbone.parameters())

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        x = torch.stack([sample["x"] for sample in batch]).to(self.head.weight.device)
        out = self.head(self.dropout(torch.tanh(self.image_backbone(x))))
        if not self.training:
            return [{"score": row.sum().item()} for row in out]
        y = torch.stack([sample["y"] for sample in batch])
        return {
            "loss_cls": (out.float().mean(1) - y).square().mean(),
            "loss_box": out.float().abs().mean() * 0.1,
        }


@META_ARCH_REGISTRY.register()
class ToyDistiller(nn.Module):
    """A ToyDetector as the student, with an adapter, one inherited parameter, and an unregistered teacher."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.student = ToyDetector(cfg)
        self.methods = nn.ModuleDict({"kd": nn.Linear(8, 8)})
        teacher = ToyDetector(cfg).eval()
        self._unregistered = (teacher,)
        self.verified_at: list[int] = []

    @property
    def teacher(self) -> nn.Module:
        return self._unregistered[0]

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        outputs = self.student(batch)
        if self.training:
            outputs["loss_distill_kd"] = self.methods["kd"](self.student.head.weight).square().mean() * 0.01
        return outputs

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        return {"model": self.student, "distill": self.methods}

    def verify_inherited(self) -> None:
        difference = self.student.image_backbone.bias.abs().max().item()
        if difference > 10:
            raise RuntimeError(f"inherited parameter image_backbone.bias differs by up to {difference:.3g}")


def toy_cfg(output_dir: Path, *options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", str(output_dir), *TOY_OPTIONS, *options])
    return cfg


class ToyLoader:
    """Endless batches, a function of seed, rank and iteration; one sample is NaN at ``poison``."""

    def __init__(self, cfg: CfgNode, start_iter: int = 0, poison: int | None = None) -> None:
        self._cfg, self._start, self._poison = cfg, start_iter, poison

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        iteration = self._start
        size, rank = self._cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), comm.get_rank()
        while True:
            positions = [iteration * self._cfg.SOLVER.IMS_PER_BATCH + rank * size + i for i in range(size)]
            batch = [toy_sample(self._cfg.SEED, position) for position in positions]
            if iteration == self._poison and rank == 0:
                batch[1]["y"] = torch.tensor(float("nan"))
            yield batch
            iteration += 1


def toy_sample(seed: int, position: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed * 10_000 + position)
    x = torch.randn(SIZE, generator=generator)
    return {"sample_id": f"token{position}", "x": x, "y": x.sum().tanh()}


def build_toy_loader(cfg: CfgNode, start_iter: int = 0) -> ToyLoader:
    return ToyLoader(cfg, start_iter)


def build_toy_test_loader(cfg: CfgNode, split: str) -> list[list[dict[str, Any]]]:
    return [[toy_sample(99, i)] for i in range(comm.get_rank(), 6, comm.get_world_size())]


class ToyEvaluator(DatasetEvaluator):
    """Gathers every sample's score from all ranks."""

    def __init__(self, cfg: CfgNode, split: str, output_dir: Path) -> None:
        self._output_dir = output_dir

    def reset(self) -> None:
        self._scores: dict[str, float] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        torch.rand(3)  # as a data loader's iterator does: an evaluation takes random numbers
        self._scores.update({i["sample_id"]: o["score"] for i, o in zip(inputs, outputs, strict=True)})

    def evaluate(self) -> dict[str, Any] | None:
        gathered = comm.gather(self._scores)
        if not comm.is_main_process():
            return None
        scores = {token: score for rank in gathered for token, score in rank.items()}
        (self._output_dir / "scores.txt").write_text(str(sorted(scores)))
        return {"toy": {"score": sum(scores.values()), "count": len(scores)}}


def flat(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])
