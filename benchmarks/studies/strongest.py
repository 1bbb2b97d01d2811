"""`sweep=strongest` beside one search for each attack, at a third of their time: what either finds, on five unseen seeds.

For every pair of a rule and an objective on digits (10 clients, 2 malicious, 10 rounds, full knowledge): each attack that fits is
searched alone (TPE, halving, what is configured first), then all of them by the bandit until it has used a third of the processor
time of those searches together. The best of the single searches is that with the largest mean on the unseen seeds among the five
which stood best in the search; the bandit's is its winner, whatever it comes to there. No tracking.

python benchmarks/studies/strongest.py --pairs krum trimmed_mean --trials 5
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.attacks import Choice
from fl_lightning.config import Experiment, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.metrics import bounds, interval
from fl_lightning.search import search_space
from fl_lightning.search._first_trials import ASKED, configured
from fl_lightning.search._fitting import all_that_fit
from fl_lightning.search._pruning import pruner
from fl_lightning.search._space import Space, changes, threat
from fl_lightning.search._study import quiet, sampler
from fl_lightning.search._trials import Watcher, ask, score

PAIRS: dict[str, dict[str, Any]] = {
    "krum": {"aggregator": {"name": "krum", "n_byzantine": 2}},
    "trimmed_mean": {"aggregator": {"name": "trimmed_mean", "n_byzantine": 2}},
    "geometric_median": {"aggregator": "geometric_median"},
    "multi_krum": {"aggregator": {"name": "multi_krum", "n_byzantine": 2}},
    "krum trigger": {
        "aggregator": {"name": "krum", "n_byzantine": 2},
        "sweep.threat": {"objective": {"name": "trigger", "label": 0, "size": 2, "offset": 0}},
    },
}
METRIC, SEEDS = "attack/success", (1001, 1002, 1003, 1004, 1005)


class Search(NamedTuple):
    """A finished search.

    Attributes:
        best: its best trial; None: none came to its end.
        trials: how many there were.
        seconds: of the processor.
    """

    best: FrozenTrial | None
    trials: int
    seconds: float


def measured(experiment: Experiment, trial: optuna.Trial | None = None) -> float:
    """The mean of the last third of a run's rounds; pruned where a trial is handed in and is hopeless."""
    watcher = Watcher(trial, METRIC)
    Federation(experiment, observers=[watcher]).run()
    if watcher.pruned:
        raise optuna.TrialPruned
    return score(watcher.history, METRIC)


def search(experiment: Experiment, space: Space, kind: str, trials: int, seconds: float = float("inf")) -> Search:
    """Trials until there are enough, or the seconds of the processor are used up."""
    study = optuna.create_study(direction="maximize", pruner=pruner(experiment.sweep, experiment.planned_rounds))
    for params in configured(experiment, space):
        study.enqueue_trial(params, user_attrs={ASKED: list(params)})

    def objective(trial: optuna.Trial) -> float:
        drawn = changes(space, ask(trial)) | threat(experiment)
        trial.set_user_attr("changes", drawn)
        try:
            return measured(experiment.override(drawn), trial)
        except ConfigError as error:
            trial.set_user_attr("error", str(error))
            raise

    begin, done = time.process_time(), 0
    while done < trials and time.process_time() - begin < seconds:
        study.sampler = sampler(
            kind, 1000 * experiment.seed + done
        )  # as a search does: by the seed and the trial's place
        study.optimize(objective, n_trials=1, catch=(Exception,))
        done += 1
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
    return Search(best, done, time.process_time() - begin)


def confirmed(experiment: Experiment, drawn: Mapping[str, Any]) -> list[float]:
    """The figure on each unseen seed."""
    return [measured(experiment.override({**drawn, "seed": seed})) for seed in SEEDS]


def compare(name: str, trials: int) -> None:
    """Print what both find for one pair."""
    base = {"attack": None, "evaluation.every": 1, "sweep": "strongest"}
    experiment = all_that_fit(load("digits").override(base | PAIRS[name]))
    space = search_space(experiment)
    attacks = [str(attack) for attack in space["attack"].values]  # type: ignore[union-attr]
    single = [(attack, search(experiment, {"attack": Choice((attack,))}, "tpe", trials)) for attack in attacks]
    total = sum(one.seconds for _, one in single)
    bandit = search(experiment, space, "bandit", 10_000, total / 3)
    stood = sorted((one for one in single if one[1].best), key=lambda one: -one[1].best.value)[:5]  # type: ignore[union-attr]
    told = [(attack, confirmed(experiment, one.best.user_attrs["changes"])) for attack, one in stood]  # type: ignore[union-attr]
    attack, values = max(told, key=lambda one: sum(one[1]))
    won = bandit.best
    assert won is not None
    own = confirmed(experiment, won.user_attrs["changes"])
    print(
        f"{name}: {len(single)} attacks, {sum(one.trials for _, one in single)} trials, {total:.0f} s alone", flush=True
    )
    print(f"  best alone   {attack:20} {interval(values, bounds(METRIC))}", flush=True)
    print(f"  strongest    {won.params['attack']:20} {interval(own, bounds(METRIC))}", end="")
    print(f"  {bandit.trials} trials, {bandit.seconds:.0f} s; {(sum(own) - sum(values)) / len(SEEDS):+.3f}", flush=True)
    print("  others alone " + ", ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--trials", type=int, default=5, help="of each single search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    for pair in options.pairs:
        compare(pair, options.trials)
