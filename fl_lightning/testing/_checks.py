"""What all suites share: how a check fails, how all are run, and a check that fits every component."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from fl_lightning.registry import Component, name_of


def require(condition: object, message: str) -> None:
    """Raise AssertionError(message) unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def run_all(checks: Mapping[str, Callable[..., None]], what: str, *arguments: Any) -> None:
    """Run every check with the same arguments.

    Args:
        checks: by name.
        what: what is checked, for the message.
        arguments: what every check gets.

    Raises:
        AssertionError: naming the check that failed, and why.
    """
    for name, check in checks.items():
        try:
            check(*arguments)
        except Exception as error:
            raise AssertionError(f"{what} fails the check {name}: {error}") from error


def configuration_round_trips(component: Component, *_: Any) -> None:
    """The component is its configuration: `to_dict` builds an equal one."""
    values = component.to_dict()
    known = (component.name, name_of(type(component)))  # a class that no registry knows is named by module:Class
    require(values.pop("name", None) in known, "to_dict() does not hold the name")
    require(type(component)(**values) == component, f"{values} builds another component")
    names = {field.name for field in fields(component)}
    require(set(values) == names, f"to_dict() has {sorted(values)}, the component has {sorted(names)}")


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal in structure and in every number; NaN equals NaN."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape):
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
