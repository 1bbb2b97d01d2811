"""Which attacks fit an experiment's threat model, objective, data and model: what `sweep.space: {attack: all}` stands for."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fl_lightning.attacks import Attack
from fl_lightning.config import ALL_ATTACKS, THREAT, Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.paths import config_names
from fl_lightning.registry import named_config, registry
from fl_lightning.search._space import threat

__all__ = ["all_that_fit"]

log = logging.getLogger("fl_lightning")

ANYTHING: dict[str, Any] = {"knowledge": "full", "visible_updates": 0, "objective": "untargeted", "inflate": 1.0}
"""The threat model where neither the search nor the experiment names one: an attacker who knows all and wants errors."""


def all_that_fit(experiment: Experiment) -> Experiment:
    """The experiment with `space: {attack: all}` replaced by the attacks that fit; any other experiment as it is.

    Of attacks that have several files the one of the attack's own name is tried first, then the others; cheap attacks stand
    before those that say what they cost. What the configured attack knows and is after becomes `sweep.threat`, where that
    says nothing else; without an attack it is `ANYTHING`.

    Raises:
        ConfigError: no attack fits, or the objective fits no data.
    """
    settings = experiment.sweep
    if settings.space.get("attack") not in ALL_ATTACKS:
        return experiment
    granted = dict(ANYTHING)
    if experiment.attack:
        plain = experiment.attack.to_dict()
        granted = {name: plain[name] for name in THREAT}
    experiment = experiment.model_copy(update={"sweep": replace(settings, threat=granted | settings.threat)})
    fitting, left_out = _fitting(experiment)
    if not fitting:
        raise ConfigError(f"no attack fits: {'; '.join(sorted(set(left_out.values())))}", "sweep.space.attack")
    for name, reason in left_out.items():
        log.info("attack %s is left out: %s", name, reason)
    attacks = sorted(fitting, key=lambda name: fitting[name].expense(experiment) is not None)
    space = settings.space | {"attack": {"choice": attacks}}
    return experiment.model_copy(update={"sweep": replace(experiment.sweep, space=space)})


def _fitting(experiment: Experiment) -> tuple[dict[str, Attack], dict[str, str]]:
    """The attacks that fit, and why others do not."""
    federation = Federation(experiment.override({"attack": None}))
    fitting: dict[str, Attack] = {}
    left_out: dict[str, str] = {}
    for component in registry("attack").names():
        for name in _files(component):
            try:
                attack = experiment.override({"attack": name} | threat(experiment)).attack
                assert attack is not None
                attack.check(federation.data, federation.bench.flat.loss)
                attack.check_model(federation.bench.flat)
            except (ConfigError, ValueError) as error:
                left_out.setdefault(component, str(error))
                continue
            fitting[name] = attack
            left_out.pop(component, None)
            break
    return fitting, left_out


def _files(component: str) -> Iterator[str]:
    """Names that configure an attack: its own, then those of its other files."""
    yield component
    for name in config_names("attack"):
        settings = named_config("attack", name)
        if name != component and isinstance(settings, dict) and settings.get("name") == component:
            yield name
