"""Random seeds that are derived from whole numbers such as (seed, epoch, step)."""

import random

import numpy as np
import torch


def seed_everything(*numbers):
    """Seed Python, NumPy and torch from whole numbers ≥ 0, and return the derived seed, an int below 2³²."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)  # byol-pytorch's own augmentation draws from it
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
