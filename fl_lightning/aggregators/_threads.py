"""How the rules use the cores of a CPU: few large pieces of work, each on one core.

A rule runs thousands of short tensor operations. Spread over all cores one by one they meet at thousands of barriers, which
cost nothing on an idle machine and most of the time on a busy one (measured: 0.14 s become 3 to 20 s); on one core each they
only slow down by the share that others take.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
MIN_COLUMNS = 200_000  # below it threads cost as much as they save


@contextmanager
def one_core() -> Iterator[None]:
    """Operations inside use one core."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


@cache
def workers(cores: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: a new one spends milliseconds before its first product. A forked process needs its own."""
    return ThreadPoolExecutor(cores, f"columns-{process}")


def by_columns(function: Callable[[slice], T], n_columns: int, device: torch.device) -> list[T]:
    """Results of a function on consecutive ranges of columns, one range a core; one range only on an accelerator."""
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1 or n_columns < MIN_COLUMNS:
        return [function(slice(0, n_columns))]
    step = -(-n_columns // cores)

    def on_one_core(start: int) -> T:
        torch.set_num_threads(1)  # of this thread
        with torch.no_grad():
            return function(slice(start, min(start + step, n_columns)))

    try:
        return list(workers(cores, os.getpid()).map(on_one_core, range(0, n_columns, step)))
    finally:
        torch.set_num_threads(cores)  # also what later threads start with


def column_wise(function: Callable[[Tensor], Tensor], updates_CD: Tensor) -> Tensor:
    """`[D]` of a function `[C, B] -> [B]` that treats every column by itself, on all cores."""
    parts = by_columns(lambda columns: function(updates_CD[:, columns]), updates_CD.shape[1], updates_CD.device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
