"""How the benchmarks measure: contenders take turns in one process, the best time of each counts."""

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Contenders = Mapping[str, Callable[[], Any]]


def best_seconds(
    contenders: Contenders,
    repeat: int,
    device: str = "cpu",
    budget: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Best time of each; slow ones take fewer turns once they have used up their budget in seconds.

    On a machine that others use, too, `time.process_time` is the better clock for work on one thread.
    """
    best: dict[str, float] = {}
    spent = dict.fromkeys(contenders, 0.0)
    for _ in range(repeat):
        for name, work in contenders.items():
            if spent[name] > budget:
                continue
            start = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            elapsed = clock() - start
            spent[name] += elapsed
            best[name] = min(elapsed, best.get(name, elapsed))
    return best


def machine(device: str, threads: int) -> dict[str, str]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {threads} threads"
    return {"device": name, "torch": torch.__version__}
