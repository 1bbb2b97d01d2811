"""What a report is about: a poisoned model, its clean counterpart, and the federation that made them."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_lightning.data import Samples
from fl_lightning.errors import ConfigError, errors_under, excerpt
from fl_lightning.federation import Federation, FederationState
from fl_lightning.models import FlatNetwork, confidence, predict
from fl_lightning.paths import data_folder
from fl_lightning.randomness import generator
from fl_lightning.registry import flatten, no_imports
from fl_lightning.tracking import Registered, client, compare, find, history


@dataclass(frozen=True)
class Subject:
    """A poisoned model beside a clean one; both tell classes apart, as every registered model does.

    Attributes:
        model: the poisoned model.
        clean: what it is compared with, or None.
        federation: the one that made it: its data, clients and the attacker's goal.
        poisoned_D: `[D]` parameters of the poisoned model.
        clean_D: `[D]` parameters of the clean one, or None.
    """

    model: Registered
    clean: Registered | None
    federation: Federation
    poisoned_D: Tensor
    clean_D: Tensor | None

    @property
    def flat(self) -> FlatNetwork:
        """The architecture with its loss."""
        return self.federation.bench.flat

    @property
    def both(self) -> dict[str, Tensor]:
        """The parameters by what the report calls them."""
        return {"poisoned": self.poisoned_D} | ({} if self.clean_D is None else {"clean": self.clean_D})

    @cached_property
    def attacked_rounds(self) -> list[int]:
        """Rounds in which malicious clients attacked, as the run has logged them."""
        logged = history(client(only_read=True), str(self.model.version.run_id), "attack/active")
        return sorted(round for round, active in logged.items() if active)

    @property
    def success_samples(self) -> Samples:
        """What success is counted on."""
        goal = self.federation.goal
        return goal.clean if goal.success is None else goal.success

    def success_rate(self, theta_D: Tensor) -> float:
        """Share of the success samples that get the wished label; the error rate for an untargeted attack."""
        goal = self.federation.goal
        if goal.success is None:
            return 1 - self.flat.accuracy(theta_D, goal.clean)
        return self.flat.accuracy(theta_D, goal.success)

    def judged(self, theta_D: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[n]` predicted classes, and `[n]` their probability where the model gives any."""
        scores_nK = self.flat.scores(theta_D, x)
        classes_n = predict(scores_nK)
        return classes_n, confidence(scores_nK, classes_n) if self.flat.loss == "cross_entropy" else None

    def some(self, samples: Samples, count: int) -> Samples:
        """At most `count` of the samples, drawn by the experiment's seed."""
        random = generator(self.federation.bench.seed, "analysis")
        order = torch.randperm(len(samples), generator=random)[:count].sort().values
        return samples[order.to(samples.y.device)]

    def from_the_start(self) -> Federation:
        """The federation before its first round, as it was; it evaluates nothing by itself."""
        experiment = self.federation.experiment
        federation = self.federation.twin()
        evaluation = replace(experiment.evaluation, every=10**9)
        federation.experiment = experiment.model_copy(update={"evaluation": evaluation})
        federation.state = federation.initial_state()
        return federation

    def continued(self, **changes: Any) -> Federation:
        """The federation in the round after its last one, at the poisoned model, with slots of the experiment changed.

        It evaluates nothing by itself.
        """
        start = self.federation
        evaluation = replace(start.experiment.evaluation, every=10**9)
        experiment = start.experiment.model_copy(update={"evaluation": evaluation, **changes})
        federation = start.twin()
        federation.experiment = experiment
        attack = dict(experiment.attack.init()) if experiment.attack else {}
        defenses: dict[str, Any] = {label: dict(one.init()) for label, one in experiment.defenses.items()}
        theta_D = self.poisoned_D
        federation.state = FederationState(
            experiment.planned_rounds, theta_D.clone(), theta_D.clone(), attack, defenses
        )
        return federation


MOST = {"clients": 10_000, "epochs": 10_000, "steps": 100_000, "rounds": 1_000_000, "references": 100_000}
"""The largest numbers in a configuration that a report is made about."""


def check_bounds(model: Registered) -> None:
    """Refuse a model whose configuration, which anybody may have written, has the report read or train what it should not.

    Raises:
        ConfigError: a number beyond `MOST`, clients on another machine, or data outside of the data folder and this folder.
    """
    inside = (data_folder().resolve(), Path.cwd())
    with errors_under(model.title):
        for path, value in flatten(model.experiment.to_dict()).items():
            most = MOST.get(path.rpartition(".")[2])
            if most is not None and isinstance(value, int) and value > most:
                raise ConfigError(f"{value:,} is more than the {most:,} that a report trains with; --trust", path)
            if path.startswith("data.") and isinstance(value, str) and os.sep in value:
                place = Path(value).expanduser().resolve()
                if not any(place.is_relative_to(folder) for folder in inside):
                    raise ConfigError(
                        f"{excerpt(value)} lies outside of {inside[0]} and of this folder; --trust reads it", path
                    )
        if model.experiment.engine.name == "ray":
            raise ConfigError("a report trains on a cluster for trusted models only; --trust", "engine")


def subject(reference: str, against: str | None = None, trusted: bool = False) -> Subject:
    """A registered model, with the attack-free twin that was registered beside it or another model to compare with.

    Args:
        reference: the poisoned model.
        against: the clean one; None: its twin.
        trusted: whether its configuration is the user's own: see `find` and `check_bounds`.

    Raises:
        ConfigError: no such model, nothing poisoned, or a comparison with another architecture or other data.
    """
    model = find(reference, trusted)
    tags = model.version.tags
    if not trusted:
        check_bounds(model)
    if tags.get("attack", "none") == "none" or model.experiment.attack is None:
        twin = tags.get("twin_of")
        poisoned = twin if "/" in str(twin) else f"{model.version.name}/{twin}"
        hint = f"; analyze {poisoned}, whose attack-free twin it is" if twin else ""
        raise ConfigError(f"{model.title} is not poisoned{hint}")
    if against is None and tags.get("clean_twin"):
        twin = tags[
            "clean_twin"
        ]  # older versions kept twins under the poisoned model's own name, and a bare number here
        against = twin if "/" in twin else f"{model.version.name}/{twin}"
    clean = find(against, trusted) if against else None
    if clean is not None:
        if clean.title == model.title:
            raise ConfigError(f"{model.title} cannot be compared with itself")
        compare(model, clean)  # refuses another architecture
        if clean.experiment.data != model.experiment.data:
            raise ConfigError(f"{model.title} and {clean.title} were trained on different data")
    evaluation = replace(model.experiment.evaluation, twin=False, effect=False)
    with nullcontext() if trusted else no_imports():  # data may name modules, too
        federation = Federation(model.experiment.model_copy(update={"evaluation": evaluation}))
    if (federation.data.shape, federation.data.classes) != (model.shape, model.classes):
        raise ConfigError(f"{model.title} was not trained on {model.experiment.data.name}: their shapes differ")
    vectors = [
        federation.bench.flat.like(one.network).vector().to(federation.initial_D)
        for one in (model, clean)
        if one is not None
    ]
    return Subject(model, clean, federation, vectors[0], vectors[1] if clean else None)
