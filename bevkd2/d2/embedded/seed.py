"""Seeding of the random number generators."""

import logging
import os
import random

import numpy as np
import torch

_logger = logging.getLogger("detectron2.utils.env")


def seed_all_rng(seed: int | None = None) -> None:
    """Seeds Python's, numpy's and torch's generators, on all devices.

    Args:
        seed: in [0, 2**32); by default one from the operating system, which is logged.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        _logger.info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
