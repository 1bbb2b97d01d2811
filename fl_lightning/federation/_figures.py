"""What of a round is told as figures: callbacks' reports, detection, what modules log, seconds."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from fl_lightning.defenses import Judged
from fl_lightning.federation._state import Metrics
from fl_lightning.metrics import detection


def averaged(labels: Iterable[str], reports: Iterable[Iterable[Mapping[str, float]]]) -> Metrics:
    """What the callbacks of each fit report, averaged over the fits."""
    told: dict[str, list[float]] = {}
    for report in reports:
        for label, figures in zip(labels, report, strict=True):
            for name, value in figures.items():
                told.setdefault(f"client/{label}/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


def judged_figures(judged: Judged, poisoned_C: Tensor) -> Metrics:
    """How well a defense detects by whom it removed and, where it tells, by whom it flagged, and its own figures."""
    prefix, verdict, poisoned_n = f"defense/{judged.label}", judged.verdict, poisoned_C[judged.rows]
    metrics = detection(verdict.keep_C, poisoned_n, verdict.scores_C, prefix)
    if verdict.flagged_C is not None:
        rates = detection(~judged.flagged_n, poisoned_n, None, prefix)
        metrics |= {f"{prefix}/flagged_{name.rpartition('/')[2]}": value for name, value in rates.items()}
    return metrics | {f"{prefix}/{name}": value for name, value in judged.metrics.items()}


def logged(fits: Sequence[Mapping[str, float]], malicious: Sequence[bool]) -> Metrics:
    """What modules have logged, averaged over the benign clients that did; attackers' honest training apart."""
    told: dict[str, list[float]] = {}
    for figures, bad in zip(fits, malicious, strict=False):  # an engine on other machines keeps what they log to itself
        for name, value in figures.items():
            told.setdefault(f"client/attackers/{name}" if bad else f"client/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


class Clock:
    """Seconds spent in the named parts of a round."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.parts[f"time/{part}"] = time.perf_counter() - before

    def metrics(self) -> Metrics:
        return self.parts | {"time/round": time.perf_counter() - self.begin}
