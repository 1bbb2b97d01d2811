"""The worst case of a server: the strongest of some attacks, searched anew against it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import exp, log
from typing import Any

import torch

from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation._state import FederationState, Metrics
from fl_lightning.randomness import generator
from fl_lightning.registry import Choice, tunables

__all__ = ["redrawn", "server_seconds", "worst_case"]


def worst_case(experiment: Experiment, run: Callable[[Experiment], FederationState]) -> Metrics:
    """What the strongest of the attacks in `evaluation.worst` comes to against the experiment's server.

    Each attack runs as configured, then with values drawn from the ranges of its tunable fields; a draw that the attack refuses
    is left out. What counts is the last round; where the model has diverged the success is 1.

    Args:
        experiment: without an attack, with `evaluation.worst`.
        run: runs an experiment to its end.

    Returns:
        `worst/success` and `worst/accuracy`, and of each attack alone `worst/<label>`, its highest success.

    Raises:
        ConfigError: an attack does not fit as it is configured.
    """
    worst = experiment.evaluation.worst
    assert worst is not None
    evaluation = replace(experiment.evaluation, worst=None, every=experiment.rounds)
    figures: Metrics = {}
    accuracies = []
    for label, attack in worst.attacks.items():
        successes = []
        for number in range(worst.draws):
            try:
                chosen = redrawn(attack, generator(experiment.seed, f"worst {label}", number)) if number else attack
                state = run(experiment.model_copy(update={"attack": chosen, "evaluation": evaluation}))
            except ConfigError:
                if not number:
                    raise
                continue
            last = {name: value for metrics in state.history for name, value in metrics.items()}
            lost = bool(state.stopped) or not bool(torch.isfinite(state.global_D).all())
            successes.append(1.0 if lost else last["attack/success"])
            accuracies.append(0.0 if lost else last.get("global/accuracy", 0.0))
        figures[f"worst/{label}"] = max(successes)
    return {"worst/success": max(figures.values()), "worst/accuracy": min(accuracies), **figures}


def redrawn(attack: Any, coins: torch.Generator) -> Any:
    """The attack with every tunable field drawn from its range, on a logarithmic scale where that is the range's."""
    drawn: dict[str, Any] = {}
    for field, span in tunables(type(attack)).items():
        share = float(torch.rand((), generator=coins))
        if isinstance(span, Choice):
            drawn[field] = span.values[min(int(share * len(span.values)), len(span.values) - 1)]
            continue
        low, high = (log(span.low), log(span.high)) if span.log else (span.low, span.high)
        value = low + share * (high - low)
        value = exp(value) if span.log else value
        drawn[field] = round(value) if span.integer else value
    return replace(attack, **drawn)


def server_seconds(history: Iterable[Metrics]) -> Metrics:
    """What defenses and rule take of a round, its mean over the rounds."""
    spent = [figures["time/defend"] + figures["time/aggregate"] for figures in history if "time/aggregate" in figures]
    return {"server/seconds": sum(spent) / len(spent)} if spent else {}
