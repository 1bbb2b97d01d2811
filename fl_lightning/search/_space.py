"""What a search varies: the tunable fields of an attack, ranges by dotted path, and what follows from a choice."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast, get_type_hints

from fl_lightning.attacks import Attack, Choice, Tunable, as_span
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.registry import named_config, registry

__all__ = ["Ask", "Space", "Span", "changes", "search_space", "tunables"]

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


def tunables(attack: type[Attack]) -> dict[str, Span]:
    """The annotated search ranges of an attack's fields."""
    hints = get_type_hints(attack, include_extras=True)
    found = {}
    for field in fields(attack):
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, Tunable | Choice):
                found[field.name] = mark
    return found


def changes(space: Space, ask: Ask) -> dict[str, Any]:
    """The configuration changes of one trial, as dotted paths in the order in which they apply.

    Where the attack itself is searched, `{"attack": Choice(("cmp", "alie"))}`, the tunable fields of the drawn attack
    follow under its name: parameters `cmp.eta`, `alie.z`, ... that only exist in trials of that attack.

    Args:
        space: ranges by dotted path.
        ask: draws a value; called once a parameter.
    """
    drawn: dict[str, Any] = {}
    for path, span in space.items():
        drawn[path] = ask(path, span)
        if path == "attack":
            name = drawn[path]
            own = tunables(cast(type[Attack], registry("attack")[component_name(name)]))
            drawn |= {f"attack.{field}": ask(f"{name}.{field}", inner) for field, inner in own.items()}
    return drawn


def component_name(name: str) -> str:
    """The attack that a file in `configs/attack/` configures."""
    settings = named_config("attack", name)
    return str(settings["name"]) if settings else name
