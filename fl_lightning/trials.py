"""What one trial of a search draws, watches and reports to Optuna."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna  # noqa: TID251
from optuna.trial import Trial  # noqa: TID251

from fl_lightning import runs
from fl_lightning.attacks import Choice
from fl_lightning.config import Experiment, parse_bound
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.registry import ConfigError, suggest
from fl_lightning.space import Ask, Span
from fl_lightning.warmup import clean_rounds

__all__ = ["Watcher", "ask", "attack_start", "nobody", "sampler", "score", "violations"]


def score(history: Sequence[Mapping[str, float]], metric: str) -> float:
    """Mean of a metric over the last third of the rounds that report it: a single round is noise.

    Raises:
        ConfigError: no round reports it.
    """
    values = [figures[metric] for figures in history if metric in figures]
    if not values:
        reported = sorted({name for figures in history for name in figures if not name.startswith("time/")})
        raise ConfigError(f"no round reports {metric!r}; {suggest(metric, reported)}", "sweep.metric")
    last = values[-max(1, len(values) // 3) :]
    return sum(last) / len(last)


def violations(history: Sequence[Mapping[str, float]], constraints: Mapping[str, str]) -> dict[str, float]:
    """By how much each constraint is missed; at most 0 where it holds."""
    missed = {}
    for metric, bound in constraints.items():
        sign, limit = parse_bound(metric, bound)
        missed[metric] = sign * (limit - score(history, metric))
    return missed


class Watcher:
    """An observer that keeps the figures, and reports the score so far to Optuna, which may end a hopeless trial."""

    def __init__(self, trial: Trial | None = None, metric: str = ""):
        self.trial, self.metric = trial, metric
        self.history: list[dict[str, float]] = []
        self.rounds = 0
        self.clean = 0

    def start(self, federation: Federation) -> None:
        """Find the first attacked round: what comes before it tells nothing."""
        self.clean = attack_start(federation.experiment)

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Report the score of the attacked rounds so far; stop the federation where Optuna gives the trial up."""
        self.history = federation.state.history
        self.rounds += 1
        if self.trial is None or self.metric not in report.metrics:
            return
        if report.round < self.clean:
            return
        self.trial.report(score(self.history[self.clean :], self.metric), report.round - self.clean)
        last = report.round + 1 == federation.experiment.rounds
        if not last and self.trial.should_prune():
            federation.state.stopped = f"pruned after round {report.round}"

    def beside(self, watch: runs.Watch) -> runs.Watch:
        """This observer and those that `watch` makes."""
        return lambda experiment: [self, *watch(experiment)]


def attack_start(experiment: Experiment) -> int:
    """Rounds before the first attacked one; 0 where none is attacked."""
    return clean_rounds(experiment) % experiment.rounds


def ask(trial: Trial) -> Ask:
    """Draws from Optuna."""

    def draw(name: str, span: Span) -> Any:
        if isinstance(span, Choice):
            return trial.suggest_categorical(name, list(span.values))
        if span.integer:
            return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
        return trial.suggest_float(name, span.low, span.high, log=span.log)

    return draw


def sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name."""
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=10),
    }
    return made[name]()


def nobody(experiment: Experiment) -> tuple[()]:
    """No further observers."""
    return ()
