"""Global random numbers that follow from seed, round and client, for networks that draw their own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fl_lightning.randomness import key_of


@contextmanager
def keyed_randomness(seed: int, round: int, client: int) -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python start from a key; afterwards they are as they were.

    Args:
        seed: of the experiment.
        round: the communication round.
        client: who trains.
    """
    key = key_of(seed, "global random state", round, client)
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            torch.manual_seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            random.seed(key)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
