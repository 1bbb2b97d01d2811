"""What a search varies: the tunable fields of an attack, ranges by dotted path, and what follows from a choice."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fl_lightning.attacks import Choice, Tunable, as_span
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.registry import named_config, registry, tunables

__all__ = [
    "KEPT",
    "NOTHING",
    "Ask",
    "Space",
    "Span",
    "changes",
    "search_space",
    "shown",
    "slot_of",
    "threat",
    "tunables",
]

Span = Tunable | Choice
Space = Mapping[str, Span]
Ask = Callable[[str, Span], Any]
"""Draws the value of a named parameter."""


def search_space(experiment: Experiment) -> Space:
    """Dotted path -> range: `sweep.space` where given, else every tunable field of the configured attack.

    Raises:
        ConfigError: nothing to search, or a range that is none.
    """
    if experiment.sweep.space:
        return {path: _span(path, given) for path, given in experiment.sweep.space.items()}
    if experiment.attack is None:
        raise ConfigError("a sweep searches the strongest attack; set attack or sweep.space", "attack")
    found = tunables(type(experiment.attack))
    if not found:
        raise ConfigError(f"{experiment.attack.name} has no tunable field; set sweep.space", "attack")
    return {f"attack.{name}": span for name, span in found.items()}


def _span(path: str, given: Any) -> Span:
    with errors_under(f"sweep.space.{path}"):
        try:
            return as_span(given)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def changes(space: Space, ask: Ask) -> dict[str, Any]:
    """The configuration changes of one trial, as dotted paths in the order in which they apply.

    Where the attack itself is searched, `{"attack": Choice(("cmp", "alie"))}`, the tunable fields of the drawn attack
    follow under its name: parameters `cmp.eta`, `alie.z`, ... that only exist in trials of that attack. So do those of a rule
    (`aggregator`) and of defenses (`defenses.<label>`), under path and name. `none` is no defense, and no `aggregator.pre`;
    `arc + nnm` are two steps.

    Args:
        space: ranges by dotted path.
        ask: draws a value; called once a parameter. `KEPT`: what is configured stays.
    """
    drawn: dict[str, Any] = {}
    for path, span in space.items():
        value, slot = ask(path, span), slot_of(path)
        if value is KEPT or (value == NOTHING and slot in ("defense", "pre_aggregator")):
            continue
        drawn[path] = value
        if slot in ("attack", "aggregator", "defense") and isinstance(value, str):
            before = value if slot == "attack" else f"{path}.{value}"
            own = tunables(registry(slot)[component_name(value, slot)])
            fields_drawn = {f"{path}.{field}": ask(f"{before}.{field}", inner) for field, inner in own.items()}
            drawn |= {name: value for name, value in fields_drawn.items() if value is not KEPT}
    if "aggregator.pre" in drawn:
        drawn["aggregator.pre"] = steps(str(drawn["aggregator.pre"]), drawn.get("aggregator"))
    return drawn


def threat(experiment: Experiment) -> dict[str, Any]:
    """Changes that give whatever attack is tried the threat model and objective of `sweep.threat`; none if that is empty."""
    return {f"attack.{name}": value for name, value in experiment.sweep.threat.items()}


NOTHING = "none"

KEPT = object()
"""Drawn for a parameter that a trial leaves as it is configured."""


def slot_of(path: str) -> str | None:
    """The slot of a dotted path that names a component; None for all others."""
    if path == "aggregator.pre":
        return "pre_aggregator"
    outer, _, label = path.partition(".")
    if outer == "defenses" and label and "." not in label:
        return "defense"
    return path if path in ("attack", "aggregator") else None


def steps(names: str, rule: str | None) -> list[str | dict[str, Any]]:
    """Pre-aggregators as a configuration has them; a rule that has no f to hand on leaves it to be a fifth of the rows.

    Args:
        names: joined by ` + `.
        rule: the drawn rule, or None.
    """
    known = (
        {field.name for field in fields(registry("aggregator")[component_name(rule, "aggregator")])} if rule else set()
    )
    made: list[str | dict[str, Any]] = []
    for name in names.split(" + "):
        settings = dict(named_config("pre_aggregator", name) or {"name": name})
        needs = getattr(registry("pre_aggregator")[settings["name"]], "needs_n_byzantine", False)
        lacks = needs and "n_byzantine" not in known and settings.get("n_byzantine") is None
        made.append(settings | {"n_byzantine": "auto"} if lacks else name)
    return made


def shown(value: Any) -> str:
    """A value of a trial as tables have it.

    Example:
        >>> shown(0.123456), shown("krum"), shown([{"name": "arc", "n_byzantine": "auto"}, "nnm"])
        ('0.1235', 'krum', 'arc + nnm')
    """
    if isinstance(value, list):
        return " + ".join(shown(step["name"] if isinstance(step, dict) else step) for step in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def component_name(name: str, slot: str = "attack") -> str:
    """The component that a file of a slot configures."""
    settings = named_config(slot, name)
    return str(settings["name"]) if settings else name
