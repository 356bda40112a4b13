"""What TensorBoard shows besides scalars: pictures of detections, and hyper-parameters with final scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from bevkd2.d2 import EventWriter, HookBase, TensorboardXWriter, comm, flatten_results_dict
from bevkd2.data.format import data_format
from bevkd2.data.loader import first_test_dataset
from bevkd2.distill import Distiller
from bevkd2.modeling import Detector
from bevkd2.visualization.objects import Image

Pictures = Iterable[tuple[str, Mapping[str, Image]]]
"""Name of a sample, and its pictures by name."""


class EvaluationPictures(HookBase):
    """Puts pictures of the model's detections into the storage at every evaluation.

    Goes behind the evaluation and before the writers, in all processes; the main one draws.
    """

    def __init__(self, period: int, draw: Callable[[], Pictures] | None) -> None:
        """Takes the function that draws.

        Args:
            period: iterations between two evaluations; 0: at the end only.
            draw: returns the pictures; None: another process draws.
        """
        self._period, self._draw = period, draw

    def after_step(self) -> None:
        """Draws, if an evaluation was due before the end of the training."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._put_pictures()

    def after_train(self) -> None:
        """Draws at the end of a training that did not fail."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._put_pictures()

    def _put_pictures(self) -> None:
        if self._draw is not None:
            for sample, pictures in self._draw():
                for name, picture in pictures.items():
                    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
                    self.trainer.storage.put_image(f"{name}/{sample}", image)
        comm.synchronize()  # the others wait here and not in a step


def pictures_hook(cfg: CfgNode, model: nn.Module) -> EvaluationPictures | None:
    """Returns the hook that TEST.TENSORBOARD.PICTURES asks for; None for 0.

    Args:
        cfg: the config.
        model: what is evaluated, not in DistributedDataParallel; of a Distiller, its student is drawn.

    Raises:
        ValueError: a negative number, or a model whose detections cannot be drawn.
    """
    num = cfg.TEST.TENSORBOARD.PICTURES
    if num < 0:
        raise ValueError(f"TEST.TENSORBOARD.PICTURES is {num}, expected a number of samples, 0 for none")
    if num == 0:
        return None
    detector = model.student if isinstance(model, Distiller) else model
    if not isinstance(detector, Detector):
        raise ValueError(
            f"TEST.TENSORBOARD.PICTURES is {num}, but {type(detector).__name__} is no bevkd2 Detector "
            "and cannot be drawn; set it to 0"
        )
    draw = (lambda: draw_samples(cfg, detector, num)) if comm.is_main_process() else None
    return EvaluationPictures(cfg.TEST.EVAL_PERIOD, draw)


def draw_samples(
    cfg: CfgNode, detector: Detector[Any, Any, Any], num: int
) -> list[tuple[str, dict[str, Image]]]:
    """Draws samples of the first test split, as ``bevkd2 visualize`` does; the model's mode stays.

    Args:
        cfg: the config.
        detector: on any device.
        num: how many samples, spread over the split.
    """
    dataset = first_test_dataset(cfg)
    was_training = detector.training
    detector.eval()
    try:
        return list(data_format(cfg).figures(cfg, dataset, {"model": detector}, num=num))
    finally:
        detector.train(was_training)


class HyperParameters(HookBase):
    """Writes hyper-parameters with the final scores, for TensorBoard's HParams page.

    Goes before the hook that closes the writers.
    """

    def __init__(self, parameters: Mapping[str, Any], writers: Iterable[EventWriter]) -> None:
        """Takes what to write and where.

        Args:
            parameters: key of the config -> value.
            writers: of the training; those of TensorBoard are used.
        """
        self._parameters = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in parameters.items()
        }
        self._writers = [writer for writer in writers if isinstance(writer, TensorboardXWriter)]

    def after_train(self) -> None:
        """Writes, if the training reached its end and has scores."""
        scores = flatten_results_dict(self.trainer.latest_results)
        if self.trainer.iter + 1 < self.trainer.max_iter or not scores:
            return
        from torch.utils.tensorboard.summary import hparams  # costs seconds to import

        for summary in hparams(self._parameters, scores):
            for writer in self._writers:
                writer._writer.file_writer.add_summary(summary)


def hyper_parameters(cfg: CfgNode) -> dict[str, Any]:
    """Returns the values of the keys in TEST.TENSORBOARD.HPARAMS.

    Raises:
        ValueError: a key that the config has not.
    """
    return {key: _value_of(cfg, key) for key in cfg.TEST.TENSORBOARD.HPARAMS}


def _value_of(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise ValueError(
                f"TEST.TENSORBOARD.HPARAMS: {key!r} is no key of the config; expected keys such as "
                "SOLVER.BASE_LR"
            )
        node = node[part]
    if isinstance(node, CfgNode):
        raise ValueError(f"TEST.TENSORBOARD.HPARAMS: {key!r} is a node of the config; name a key in it")
    return node
