"""The study of a search, and what is known of it."""

import hashlib
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.config import Experiment, Tracking
from fl_lightning.paths import runs_folder
from fl_lightning.runs import attack_start, end_abandoned
from fl_lightning.search import _storage as studies
from fl_lightning.search._bandit import Bandit
from fl_lightning.search._cmaes import CmaEs
from fl_lightning.search._ended import was_killed
from fl_lightning.search._pruning import pruner
from fl_lightning.search._space import Space


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know.

    Attributes:
        name: of the study.
        storage: database of the studies.
        experiment: what every trial changes.
        space: what is searched, as `search_space` gives it.
        label: the name that the experiment was started by.
        run_id: MLflow run of the study; empty until it has one.
        workers: how many work on it.
    """

    name: str
    storage: str
    experiment: Experiment
    space: Space
    label: str
    run_id: str = ""
    workers: int = 1

    @property
    def warmups(self) -> Path:
        """Folder of the clean rounds that trials share."""
        return runs_folder() / "warmup" / self.name

    def open(self) -> optuna.Study:
        """The study, made if need be."""
        settings = self.experiment.sweep
        with studies.making_tables(self.storage), studies.told(self.storage):
            study = optuna.create_study(
                storage=studies.storage(self.storage),
                study_name=self.name,
                sampler=Placed(settings.sampler, self.experiment.seed, self.storage),
                pruner=pruner(settings, self.experiment.planned_rounds - attack_start(self.experiment)),
                directions=list(settings.directions),
                load_if_exists=True,
            )
            if study.metric_names != list(settings.metrics):  # what Optuna's own pages call them, else "Objective 0"
                study.set_metric_names(list(settings.metrics))
            return study


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # It would print the traceback of every trial that came to nothing: the workers say the reason in one line.
    logging.getLogger("optuna.study._optimize").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def study_digest(experiment: Experiment) -> str:
    """Identifies a study: everything but how many trials it gets, by how many workers, and what is kept and confirmed of them."""
    settings = replace(experiment.sweep, trials=1, minutes=None, jobs=1, runners_up=0)
    tracked = Tracking(experiment=experiment.tracking.experiment)
    return experiment.model_copy(update={"sweep": settings, "tracking": tracked}).digest()[:8]


PLACE = "fl_lightning:place"
"""Attribute of a trial: which one it is among those that were not killed."""


class Placed(optuna.samplers.BaseSampler):
    """A sampler whose draws follow from the seed and a trial's place, not from how often the search was begun again.

    The trial that takes the place of a killed one draws what that one would have drawn.
    """

    def __init__(self, name: str, seed: int, storage: str):
        self.name, self.seed, self.storage = name, seed, storage
        self.inner = sampler(name, seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Give the trial the first free place, and the sampler that place's random numbers."""
        with studies.making_tables(self.storage):  # two workers must not take the same
            others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            begun = [other for other in others if other.state != TrialState.WAITING and not was_killed(other)]
            taken = {other.system_attrs.get(PLACE, other.number) for other in begun}
            place = next(place for place in itertools.count() if place not in taken)
            # Optuna's own samplers do the same: a sampler is given no trial that keeps what is set, and no storage
            study._storage.set_trial_system_attr(trial._trial_id, PLACE, place)
        digest = hashlib.blake2b(f"{self.seed}/{place}".encode(), digest_size=4).digest()
        self.inner = sampler(self.name, int.from_bytes(digest))
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """As the sampler does."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """As the sampler does."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As the sampler does."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self.inner.after_trial(study, trial, state, values)


def end_killed(study: optuna.Study) -> None:
    """End what a killed process left RUNNING; only called when no other process works on the study."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        if fixed := trial.system_attrs.get("fixed_params"):  # it was not drawn: the next one would be
            study.enqueue_trial(fixed, user_attrs=trial.user_attrs)
        study.tell(trial.number, state=TrialState.FAIL)
    end_abandoned(study.user_attrs["run_id"], [trial.number for trial in running])


def sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name."""
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
        "cmaes": lambda: CmaEs(seed=seed),
        "bandit": lambda: Bandit(seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=10),
    }
    return made[name]()
