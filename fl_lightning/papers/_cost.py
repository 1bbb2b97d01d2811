"""What runs will cost: measured on records of this kind of machine, else on first rounds."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.federation import Federation
from fl_lightning.papers._records import Records, digest
from fl_lightning.parallel import Jobs, share_cores
from fl_lightning.runs import one_seed

__all__ = ["cost"]


def cost(left: Mapping[str, Experiment], jobs: Jobs, records: Records) -> str:
    """How many runs are left and how long they will take, in words.

    Where this kind of machine has a record of an equal run with another seed, its time is taken; else two rounds are run,
    once for all columns of a row, and the time of the second is taken for every round.

    Args:
        left: experiments by `table | row | column`, with the seeds that are still to be run.
        jobs: worker processes, or `ray`.
        records: of runs before.
    """
    if not left:
        return "nothing is left to run"
    runs = sum(len(one.seeds) for one in left.values())
    here = tracking.environment()
    rounds: dict[str, float] = {}  # row -> seconds of a round
    seconds = 0.0
    with _as_a_worker(jobs):
        for name, one in left.items():
            took = records.seconds(digest(one), here["device"], here["cpu"])
            if took is None:
                row = name.rpartition(" | ")[0] if name.count(" | ") > 1 else name
                if row not in rounds:
                    rounds[row] = _round(one_seed(one, one.seeds[0]))
                took = rounds[row] * one.planned_rounds
            seconds += took * len(one.seeds)
    side_by_side = jobs if isinstance(jobs, int) else 1
    return (
        f"{runs} are left: about {seconds / side_by_side / 60:.1f} minutes with {side_by_side} at a time, by records of this "
        f"kind of machine and by the first rounds of {len(rounds)}"
    )


def _round(experiment: Experiment) -> float:
    """Seconds of a round, once what only the first one does is done."""
    federation = Federation(experiment)
    for _ in range(min(2, experiment.planned_rounds)):
        begin = time.perf_counter()
        federation.round()
    return time.perf_counter() - begin


@contextmanager
def _as_a_worker(jobs: Jobs) -> Iterator[None]:
    """With the threads that a worker process has."""
    threads = torch.get_num_threads()
    if jobs != 1:
        share_cores(jobs)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
