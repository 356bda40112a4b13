"""Experiments: rows of configs times seeds, trained in processes of their own, compared pair by pair."""

from bevkd2.experiments.report import compare, markdown, write_pictures
from bevkd2.experiments.results import Result, read_results
from bevkd2.experiments.spec import Experiment, Row, World, read_experiment
from bevkd2.experiments.statistics import PairedDifference, holm, paired_difference, two_way_interval

__all__ = [
    "Experiment",
    "PairedDifference",
    "Result",
    "Row",
    "World",
    "compare",
    "holm",
    "markdown",
    "paired_difference",
    "read_experiment",
    "read_results",
    "two_way_interval",
    "write_pictures",
]
