"""Printing, flattening and checking the nested dicts that evaluators return."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from bevkd2.d2.embedded.config import CfgNode

_logger = logging.getLogger("detectron2.evaluation.testing")


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Logs the main metrics so that they can be pasted into a spreadsheet.

    Args:
        results: task -> metric -> score; metrics with a "-" in their name (per class) are left out.
    """
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            _logger.info(f"copypaste: {task}={scores}")
            continue
        main = {metric: score for metric, score in scores.items() if "-" not in metric}
        _logger.info(f"copypaste: Task: {task}")
        _logger.info("copypaste: " + ",".join(main))
        _logger.info("copypaste: " + ",".join(f"{score:.4f}" for score in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compares results with ``cfg.TEST.EXPECTED_RESULTS``; exits with status 1 on a mismatch.

    Args:
        cfg: the config; the key is a list of [task, metric, expected score, tolerance].
        results: task -> metric -> score.

    Returns:
        True.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    if not all(_matches(results, *row) for row in expected):
        _logger.error("Result verification failed!")
        _logger.error("Expected Results: " + str(expected))
        _logger.error("Actual Results: " + pprint.pformat(results))
        sys.exit(1)
    _logger.info("Results verification passed.")
    return True


def _matches(results: Mapping[str, Any], task: str, metric: str, expected: float, tolerance: float) -> bool:
    actual = results.get(task, {}).get(metric)
    return actual is not None and bool(np.isfinite(actual)) and abs(actual - expected) <= tolerance


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested results.

    Args:
        results: nested dicts.

    Returns:
        ``{"a/b/c": value}`` for ``{"a": {"b": {"c": value}}}``.
    """
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
