"""`--dry-run`: what a run, a search or a matrix would need, estimated from two rounds that are really run and not tracked."""

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from fl_lightning._matrix import Matrix
from fl_lightning.cli._console import duration, shown
from fl_lightning.config import Experiment
from fl_lightning.federation import Federation
from fl_lightning.inputs import strict_json
from fl_lightning.parallel import Jobs
from fl_lightning.runs import attack_start

__all__ = ["Measured", "estimate_matrix", "estimate_run", "estimate_sweep", "measure"]

PATIENCE_SECONDS = 60.0
"""How long the cells of a matrix may be tried; those that are left count as the mean of the others."""


@dataclass(frozen=True)
class Measured:
    """Two rounds of an experiment.

    Attributes:
        clients: all of them.
        per_round: how many train in a round.
        malicious: how many of all are.
        parameters: D, the length of an update.
        matrix: bytes of the `[C, D]` matrix of a round; a run holds two to four of it.
        peak: bytes of memory that this process has held at most; None where the system does not tell.
        first: seconds of the first round, with everything that is done once.
        round: seconds of the second.
    """

    clients: int
    per_round: int
    malicious: int
    parameters: int
    matrix: int
    peak: int | None
    first: float
    round: float

    def seconds(self, rounds: int) -> float:
        """Of a run of so many rounds; what MLflow keeps costs more, mostly at the end."""
        return self.first + self.round * max(0, rounds - 1)


def measure(experiment: Experiment) -> Measured:
    """Run two rounds.

    Raises:
        ConfigError: the experiment cannot run.
    """
    federation = Federation(experiment)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        cohort = federation.round().cohort
        times.append(time.perf_counter() - begin)
    vector_D = federation.state.global_D
    per_round = len(cohort.clients)
    return Measured(
        clients=len(federation.assignment),
        per_round=per_round,
        malicious=experiment.participation.malicious,
        parameters=len(vector_D),
        matrix=per_round * len(vector_D) * vector_D.element_size(),
        peak=_peak(),
        first=times[0],
        round=times[1],
    )


def _peak() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def estimate_run(experiment: Experiment, as_json: bool) -> int:
    """Print what a run would need; returns the exit code."""
    found = measure(experiment)
    runs = max(1, len(experiment.seeds))
    _tell(
        found, found.seconds(experiment.planned_rounds) * runs, f"{runs} x {experiment.planned_rounds} rounds", as_json
    )
    _caution(experiment)
    return 0


def estimate_sweep(experiment: Experiment, as_json: bool) -> int:
    """Print what a search would need: its trials, then the runs that confirm its winner; returns the exit code."""
    from fl_lightning.search._first_trials import check_first
    from fl_lightning.search._fitting import all_that_fit
    from fl_lightning.search._space import search_space
    from fl_lightning.search._sweep import check_confirmation

    check_confirmation(experiment)
    experiment = all_that_fit(experiment)
    check_first(experiment, search_space(experiment))
    found, settings = measure(experiment), experiment.sweep
    seeds, confirmations = max(1, len(settings.seeds)), (2 + settings.runners_up) * len(settings.confirm_seeds)
    one = found.seconds(experiment.planned_rounds)
    trials = settings.trials
    if settings.minutes is not None:
        trials = min(trials, max(1, round(60 * settings.minutes * _workers(settings.jobs) / (one * seeds))))
    total = one * (trials * seeds / _workers(settings.jobs) + confirmations)
    what = f"{trials} trials of {seeds} x {experiment.planned_rounds} rounds, {confirmations} runs to confirm"
    _tell(found, total, f"{what}; pruning often spares a third of the trials' rounds", as_json)
    _caution(experiment)
    return 0


def estimate_matrix(matrix: Matrix, fast: bool, as_json: bool) -> int:
    """Print what a matrix would need, from two rounds of as many of its cells as a minute allows; returns the exit code."""
    cells = matrix.experiments(fast)
    begin, found = time.perf_counter(), []
    for experiment in _spread(list(cells.values())):
        found.append((measure(experiment), experiment.planned_rounds))
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            break
    mean = sum(one.seconds(rounds) for one, rounds in found) / len(found)
    searches = (
        (len(cells) - len(matrix.servers)) * int((matrix.tune or {}).get("trials", 20))
        if matrix.tune is not None
        else 0
    )
    total = mean * (len(cells) * len(matrix.seeds) + searches) / _workers(matrix.jobs)
    what = f"{len(cells)} cells x {len(matrix.seeds)} seeds" + (f", {searches} trials before" if searches else "")
    largest = max((one for one, _ in found), key=lambda one: one.matrix)
    _tell(largest, total, f"{what}; {len(found)} cells were tried; finished ones are not run again", as_json)
    return 0


def _spread(cells: list[Experiment]) -> Iterable[Experiment]:
    """All cells, those first that lie far from each other, so that a few of them tell most."""
    step = max(1, round(len(cells) ** 0.5))
    return [cells[place] for start in range(step) for place in range(start, len(cells), step)]


def _workers(jobs: Jobs) -> int:
    return jobs if isinstance(jobs, int) else 1


def _caution(experiment: Experiment) -> None:
    start = attack_start(experiment)
    if experiment.attack and start > 1:
        print(f"nobody attacks before round {start}: what the attack itself costs is not in the estimate")


def _tell(found: Measured, seconds: float, what: str, as_json: bool) -> None:
    print(f"clients     {found.per_round} of {found.clients} a round, {found.malicious} of all malicious")
    print(f"parameters  D = {found.parameters:,}")
    peak = f"; held so far: {shown(found.peak)}" if found.peak else ""
    print(f"memory      {shown(found.matrix)} for the updates of a round, two to four times that in all{peak}")
    print(f"a round     {found.round:.2f} s (the first one {found.first:.2f} s)")
    print(f"in all      about {duration(seconds)}: {what}")
    print("nothing was tracked")
    if as_json:
        print(strict_json(asdict(found) | {"seconds": seconds}))
