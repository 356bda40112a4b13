"""Running a model over a data set, and the interface of what evaluates its outputs."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bevkd2.d2.embedded.comm import get_world_size, is_main_process
from bevkd2.d2.embedded.logger import log_every_n_seconds

_LOGGER_NAME = "detectron2.evaluation.evaluator"


class DatasetEvaluator:
    """Collects inputs and outputs batch by batch, and returns results at the end."""

    def reset(self) -> None:
        """Prepares for a new round of batches."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Collects one batch.

        Args:
            inputs: what the model was called with, usually a list with one dict a sample.
            outputs: what it returned, in the same order.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Sums up all batches.

        Returns:
            Task -> metric -> score; None on processes that have nothing to report.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: list[DatasetEvaluator]):
        """Combines them.

        Args:
            evaluators: called in this order.
        """
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        """Resets each."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Gives the batch to each."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """Merges the results of all; empty but on the main process.

        Raises:
            AssertionError: two evaluators report the same task.
        """
        results: OrderedDict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            for task, scores in result.items():
                if task in results:
                    raise AssertionError(f"Different evaluators produce results with the same key {task}")
                results[task] = scores
        return results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Sets eval mode, and restores the previous mode on exit; a context manager.

    Args:
        model: the model.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass
class _Clock:
    """Seconds spent since the warm-up, and batches done in them."""

    start: float
    data: float = 0.0
    compute: float = 0.0
    evaluation: float = 0.0
    batches: int = 0

    def per_batch(self, seconds: float) -> float:
        return seconds / max(self.batches, 1)

    def elapsed(self) -> float:
        return time.perf_counter() - self.start


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Calls a model on every batch in the loader's order, evaluates its outputs and times it.

    Args:
        model: a callable; an nn.Module is held in eval mode meanwhile.
        data_loader: an iterable of batches with a length.
        evaluator: one, several, or None to only time the model.
        callbacks: called with nothing at ``on_start``, ``before_inference``, ``after_inference``, ``on_end``.

    Returns:
        What the evaluator returns, or an empty dict where it returns None.
    """
    total = len(data_loader)
    logging.getLogger(_LOGGER_NAME).info("Start inference on %d batches", total)
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(list(evaluator or []))
    evaluator.reset()
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        clock = _run(model, data_loader, evaluator, callbacks or {})
    _log_times(clock)
    return evaluator.evaluate() or {}


def _run(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator,
    callbacks: dict[str, Callable[[], Any]],
) -> _Clock:
    """Processes all batches; timing restarts after the first five."""
    total = len(data_loader)
    warmup = min(5, total - 1)
    clock = _Clock(start=time.perf_counter())
    last = clock.start
    _call(callbacks, "on_start")
    for index, inputs in enumerate(data_loader):
        if index == warmup:
            last = time.perf_counter()
            clock = _Clock(start=last)
        clock.batches += 1
        got = time.perf_counter()
        outputs = _infer(model, inputs, callbacks)
        computed = time.perf_counter()
        evaluator.process(inputs, outputs)
        clock.data += got - last
        clock.compute += computed - got
        last = time.perf_counter()
        clock.evaluation += last - computed
        if index >= warmup * 2 or clock.per_batch(clock.compute) > 5:
            _log_progress(clock, index + 1, total)
    _call(callbacks, "on_end")
    return clock


def _call(callbacks: dict[str, Callable[[], Any]], name: str) -> None:
    if name in callbacks:
        callbacks[name]()


def _infer(model: Callable[[Any], Any], inputs: Any, callbacks: dict[str, Callable[[], Any]]) -> Any:
    _call(callbacks, "before_inference")
    outputs = model(inputs)
    _call(callbacks, "after_inference")
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # kernels are still running when the call returns
    return outputs


def _log_progress(clock: _Clock, done: int, total: int) -> None:
    seconds = clock.per_batch(clock.elapsed())
    eta = datetime.timedelta(seconds=int(seconds * (total - done)))
    log_every_n_seconds(
        logging.INFO,
        f"Inference done {done}/{total}. Dataloading: {clock.per_batch(clock.data):.4f} s/iter. "
        f"Inference: {clock.per_batch(clock.compute):.4f} s/iter. "
        f"Eval: {clock.per_batch(clock.evaluation):.4f} s/iter. Total: {seconds:.4f} s/iter. ETA={eta}",
        n=5,
        name=_LOGGER_NAME,
    )


def _log_times(clock: _Clock) -> None:
    """Logs the two lines that scripts look for in a log."""
    logger = logging.getLogger(_LOGGER_NAME)
    elapsed, devices = clock.elapsed(), get_world_size()
    logger.info(
        f"Total inference time: {datetime.timedelta(seconds=elapsed)} "
        f"({clock.per_batch(elapsed):.6f} s / iter per device, on {devices} devices)"
    )
    logger.info(
        f"Total inference pure compute time: {datetime.timedelta(seconds=int(clock.compute))} "
        f"({clock.per_batch(clock.compute):.6f} s / iter per device, on {devices} devices)"
    )
