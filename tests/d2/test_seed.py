import random

import numpy as np
import torch

from bevkd2.d2 import seed_all_rng


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_same_seed_same_numbers():
    seed_all_rng(3)
    first = draw()
    assert draw() != first
    seed_all_rng(3)
    assert draw() == first


def test_without_a_seed_one_is_made_and_logged(engine_log):
    seed_all_rng()
    first = draw()
    (line,) = engine_log
    assert line.startswith("Using a generated random seed ")
    seed_all_rng(int(line.rpartition(" ")[2]))
    assert draw() == first
