"""What is refused, and what is warned of, before anything is trained."""

import logging
import warnings
from functools import cache
from typing import TYPE_CHECKING

from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, errors_under, suggest
from fl_lightning.metrics import GLOSSARY, meaning
from fl_lightning.participation import Never

if TYPE_CHECKING:
    from fl_lightning.federation._federation import Federation


@cache
def say_once(what: str) -> None:
    """A warning of the project's logger, once in a process."""
    logging.getLogger("fl_lightning").warning("%s", what)


EXPENSIVE: set[str] = set()
"""Attacks whose expense this process has told: the trials of a search differ in the numbers."""


def tell_expense(experiment: Experiment) -> None:
    """Say once for each attack what crafting a round costs, where that is more than a few passes over the updates."""
    attack = experiment.attack
    if attack and attack.name not in EXPENSIVE and (expense := attack.expense(experiment)):
        EXPENSIVE.add(attack.name)
        say_once(f"attack {attack.name} costs, in every attacked round, {expense}")


def check_stop(experiment: Experiment) -> None:
    """Refuse to wait for a figure that no round reports."""
    if experiment.stop is None:
        return
    metric = experiment.stop.metric
    label = metric.removeprefix("global/")
    unknown = metric.startswith("global/") and metric not in GLOSSARY and label not in experiment.evaluation.metrics
    if unknown or meaning(metric) is None:
        raise ConfigError(f"no run reports {metric!r}; {suggest(metric, GLOSSARY)}", "stop.metric")


def check_server(federation: "Federation") -> None:
    """What only the built model can tell, and what is unwise about the rule's settings."""
    for label, defense in federation.experiment.defenses.items():
        if defense.needs_classifier:
            with errors_under(f"defenses.{label}"):
                _ = federation.bench.flat.layout.classifier
    check_metrics(federation)
    refuse_absent_attackers(federation.experiment)
    for caution in attack_cautions(federation.experiment):
        say_once(caution)
    tell_expense(federation.experiment)
    rule = federation.experiment.aggregator
    for caution in rule.cautions(federation.experiment.participation.per_round(len(federation.assignment))):
        warnings.warn(caution, stacklevel=3)


def check_metrics(federation: "Federation") -> None:
    """Try the figures of `evaluation.metrics` on the first model: what they cannot take shows before a round."""
    if not federation.experiment.evaluation.metrics:
        return
    clean = federation.goal.clean
    scores_nK = federation.bench.flat.scores(federation.bench.flat.vector(), clean.x)
    for label, metric in federation.experiment.evaluation.metrics.items():
        with errors_under(f"evaluation.metrics.{label}"):
            try:
                metric.compute(scores_nK, clean.y, federation.data.classes)
            except (RuntimeError, ValueError, TypeError, LookupError) as error:
                raise ConfigError(f"does not fit this model and data: {error}") from None


def refuse_absent_attackers(experiment: Experiment) -> None:
    """An attack that nobody carries out is a mistake, unless it is said that nobody is to attack.

    Raises:
        ConfigError: there is an attack, and no malicious client.
    """
    participation = experiment.participation
    if experiment.attack and not participation.malicious and not isinstance(participation.schedule, Never):
        raise ConfigError(
            f"nobody carries out {experiment.attack.name}: participation.malicious is 0; set it, set attack=null, or, where a "
            "control without attackers is meant, participation.schedule=never",
            "attack",
        )


def attack_cautions(experiment: Experiment) -> list[str]:
    """What about an experiment makes its attack do nothing, in sentences."""
    attack, participation, seed = experiment.attack, experiment.participation, experiment.seed
    if attack is None:
        return []
    cautions = attack.cautions(experiment)
    if not any(participation.schedule.adversarial(round, seed) for round in range(experiment.rounds)):
        cautions.append(f"attack {attack.name}: its schedule attacks in none of {experiment.rounds} rounds")
    if attack.inflate > 1 and experiment.server.weights == "equal":
        cautions.append("attack.inflate does nothing where server.weights is equal: nobody is asked for sample counts")
    return cautions
