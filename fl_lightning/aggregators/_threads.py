"""How the rules use the cores of a CPU: few large pieces of work, each on one core.

A rule runs thousands of short tensor operations. Spread over all cores one by one they meet at thousands of barriers, which
cost nothing on an idle machine and most of the time on a busy one (measured: 0.14 s become 3 to 20 s); on one core each they
only slow down by the share that others take.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
MIN_COLUMNS = 50_000  # below it threads cost more than they save


@contextmanager
def one_core() -> Iterator[None]:
    """Operations inside use one core."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


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
        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(on_one_core, range(0, n_columns, step)))
    finally:
        torch.set_num_threads(cores)  # also what later threads start with
