"""The study of a search, and what is known of it."""

import os
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fl_lightning import tracking
from fl_lightning.config import Experiment, load
from fl_lightning.paths import runs_folder
from fl_lightning.runs import attack_start
from fl_lightning.search import _storage as studies
from fl_lightning.search._pruning import pruner

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know."""

    name: str
    storage: str
    tree: dict[str, Any]
    label: str
    run_id: str

    @property
    def warmups(self) -> Path:
        return runs_folder() / "warmup" / self.name

    def open(self) -> optuna.Study:
        experiment = load(self.tree)
        settings = experiment.sweep
        # Workers must not repeat each other's random starts.
        seed = experiment.seed if settings.jobs == 1 else experiment.seed + (os.getpid() + uuid.getnode()) % 1000
        with studies.making_tables(self.storage):
            return optuna.create_study(
                storage=studies.storage(self.storage),
                study_name=self.name,
                sampler=sampler(settings.sampler, seed),
                pruner=pruner(settings, experiment.planned_rounds - attack_start(experiment)),
                directions=list(settings.directions),
                load_if_exists=True,
            )


def feasible(trial: FrozenTrial) -> bool:
    return all(missed <= 0 for missed in trial.constraints.values())


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def study_digest(experiment: Experiment) -> str:
    """Identifies a study: everything but how many trials it gets and by how many workers."""
    settings = replace(experiment.sweep, trials=1, jobs=1)
    return experiment.model_copy(update={"sweep": settings}).digest()[:8]


def killed(trials: list[FrozenTrial]) -> int:
    return sum(trial.state == TrialState.FAIL and "error" not in trial.user_attrs for trial in trials)


def end_killed(study: optuna.Study) -> None:
    """End what a killed process left RUNNING; only called when no other process works on the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    tracking.end_children(study.user_attrs["run_id"], "KILLED", "its process was killed")


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
