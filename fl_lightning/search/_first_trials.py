"""What a search tries before it searches: what is configured, and the winners of earlier searches for the same."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.attacks import Attack, Choice
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, excerpt, suggest
from fl_lightning.registry import flatten, registry
from fl_lightning.search._space import KEPT, NOTHING, Space, Span, changes, component_name, slot_of, threat, tunables

__all__ = ["ASKED", "check_first", "configured", "enqueue_first", "given", "rank"]

ASKED = "asked"
"""Attribute of a trial of what is configured: the parameters that it gives values; all others stay as they are configured."""


def configured(experiment: Experiment, space: Space) -> list[dict[str, Any]]:
    """What is configured; every attack as its file has it where the attack itself is searched."""
    if isinstance(attacks := space.get("attack"), Choice):
        return [{"attack": name} | _as_configured(str(name)) for name in attacks.values]
    flat = flatten(experiment.to_dict()) | _names(experiment, space)
    return [{name: flat[name] for name, span in _parameters(space, flat).items() if span.holds(flat.get(name))}]


def _names(experiment: Experiment, space: Space) -> dict[str, Any]:
    """The rule, pre-aggregators and defenses of an experiment by the parameters of a search, with their settings."""
    plain, clients = experiment.to_dict(), experiment.partition.clients
    rule, defenses = plain["aggregator"], plain["defenses"]
    rows = experiment.participation.per_round(clients) if isinstance(clients, int) else 0
    named: dict[str, Any] = {}
    for path in space:
        slot = slot_of(path)
        if slot == "pre_aggregator":
            named[path] = " + ".join(step["name"] for step in rule.get("pre", ())) or NOTHING
        elif slot in ("aggregator", "defense"):
            settings = rule if slot == "aggregator" else defenses.get(path.partition(".")[2], {"name": NOTHING})
            named[path] = settings["name"]
            for field, value in settings.items():
                count = field == "n_byzantine" and isinstance(value, int) and rows  # a search draws shares of the rows
                named[f"{path}.{settings['name']}.{field}"] = value / rows if count else value
    return named


def _parameters(space: Space, named: Mapping[str, Any]) -> dict[str, Span]:
    """The ranges of a search, and of the fields of the components that are named."""
    spans: dict[str, Span] = {}
    for path, span in space.items():
        spans[path] = span
        slot, name = slot_of(path), named.get(path)
        if slot in ("aggregator", "defense") and name != NOTHING and span.holds(name):
            inner = tunables(registry(slot)[component_name(str(name), slot)])
            spans |= {f"{path}.{name}.{field}": own for field, own in inner.items()}
    return spans


def _as_configured(name: str) -> dict[str, Any]:
    attack = registry("attack").build(name)
    values = {field: (span, getattr(attack, field)) for field, span in tunables(type(attack)).items()}
    return {f"{name}.{field}": value for field, (span, value) in values.items() if span.holds(value)}


def check_first(experiment: Experiment, space: Space) -> None:
    """Raise ConfigError where what is configured cannot be tried."""
    for params in configured(experiment, space):
        fitted(experiment, space, params, as_configured=True)


def enqueue_first(study: optuna.Study, storage: str, experiment: Experiment, space: Space) -> None:
    """Have a new study try first what is configured, then the newest `sweep.warm_start` winners."""
    tried = configured(experiment, space)
    for params in tried:
        study.enqueue_trial(params, user_attrs={ASKED: list(params)})
    left = experiment.sweep.warm_start
    for earlier in earlier_studies(study, storage) if left else ():
        try:
            params = fitted(experiment, space, winner(earlier))
        except (ConfigError, ValueError):  # no winner, or one that this experiment does not allow
            continue
        if params and params not in tried:
            study.enqueue_trial(params, user_attrs={"won": earlier.study_name})
            tried.append(params)
            left -= 1
        if not left:
            return


def given(experiment: Experiment, space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of the user's own as parameters of the search; what it leaves out is drawn.

    Args:
        experiment: what is searched.
        space: as `search_space` gives it.
        drawn: dotted path -> value.

    Raises:
        ConfigError: a path that is not searched, a value outside of its range, or together no valid experiment.
    """
    spans: dict[str, Span] = dict(space)
    names = {path: path for path in space}
    if isinstance(space.get("attack"), Choice):
        attack = str(drawn.get("attack"))
        if not space["attack"].holds(attack):
            raise ConfigError(f"must be searched, and one of {space['attack']}; got {attack!r}", "enqueue: attack")
        for field, span in tunables(cast(type[Attack], registry("attack")[component_name(attack)])).items():
            spans[f"attack.{field}"], names[f"attack.{field}"] = span, f"{attack}.{field}"
    for path, value in drawn.items():
        if path not in spans:
            raise ConfigError(f"is not searched; {suggest(path, spans)}", f"enqueue: {path}")
        if not spans[path].holds(value):
            raise ConfigError(f"must lie in {spans[path]}, got {excerpt(value)}", f"enqueue: {path}")
    params = {names[path]: value for path, value in drawn.items()}
    fitted(experiment, space, params)
    return params


def earlier_studies(study: optuna.Study, storage: str) -> Iterator[optuna.Study]:
    """Other studies of the same attack, rule, model and data towards the same end, the newest first."""
    subject = study.study_name.rpartition("-")[0]
    known = optuna.get_all_study_summaries(storage, include_best_trial=False)
    for summary in sorted(known, key=started, reverse=True):
        same = summary.study_name.rpartition("-")[0] == subject and summary.directions == study.directions
        if same and summary.study_name != study.study_name:
            yield optuna.load_study(study_name=summary.study_name, storage=storage)


def started(study: optuna.study.StudySummary) -> datetime:
    """When its first trial was."""
    return study.datetime_start or datetime.min


def winner(study: optuna.Study) -> dict[str, Any]:
    """Parameters of the best finished trial; ValueError where there is none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return dict(min(complete, key=lambda trial: rank(study, trial)).params)


def fitted(
    experiment: Experiment, space: Space, params: Mapping[str, Any], as_configured: bool = False
) -> dict[str, Any]:
    """Those of the parameters that the space holds; the others have any value of theirs, or stay as they are configured.

    Raises:
        ConfigError: together they make no valid experiment.
    """
    kept = {}

    def ask(name: str, span: Span) -> Any:
        if span.holds(params.get(name)):
            kept[name] = params[name]
            return params[name]
        if as_configured:
            return KEPT
        return span.values[0] if isinstance(span, Choice) else int(span.low) if span.integer else span.low

    experiment.override(changes(space, ask) | threat(experiment))
    return kept


def rank(study: optuna.Study, trial: FrozenTrial) -> tuple[bool, float, float]:
    """Sorts the best trial in the first metric first; infeasible ones after, those that miss least before others."""
    missed = sum(max(0.0, value) for value in trial.constraints.values())
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    value = -sign * trial.values[0] if trial.values else math.inf
    return missed > 0, missed, value
