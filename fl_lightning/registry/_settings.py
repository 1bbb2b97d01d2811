"""Settings: frozen, validated dataclasses, and their plain values."""

import re
from collections.abc import Mapping
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import get_annotations
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from fl_lightning.errors import ConfigError, excerpt

T = TypeVar("T")


STRICT = ConfigDict(
    extra="forbid", strict=False, arbitrary_types_allowed=True, validate_default=True, allow_inf_nan=False
)


@cache
def _leaves(cls: type) -> dict[str, set[Any]]:
    """The plain types that each field takes, also inside of its containers."""

    def leaves(hint: Any) -> set[Any]:
        inner = [part for part in get_args(hint) if part is not Ellipsis]
        return set().union(*map(leaves, inner)) if inner else {hint}

    return {name: leaves(hint) for name, hint in get_type_hints(cls).items()}


def refuse_truth_values(cls: type, values: Any) -> Any:
    """Raise a ConfigError where a field of numbers is given true or false, which pydantic would take for 1 or 0."""
    given = values.kwargs if isinstance(values, ArgsKwargs) else values
    for name, value in given.items() if isinstance(given, Mapping) else ():
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in items):
            kinds = _leaves(cls).get(str(name), set())
            if bool not in kinds and kinds & {int, float}:
                raise ConfigError(f"input should be a number, got {excerpt(value)}", str(name))
    return values


def number_check() -> Any:
    """What pydantic calls before it looks at the fields of a class; declared as `_numbers` by models of pydantic."""
    return model_validator(mode="before")(classmethod(refuse_truth_values))  # type: ignore[arg-type]


def _label(text: str) -> str:
    """What MLflow takes as part of the name of a metric."""
    if not re.fullmatch(r"\w[\w .-]{0,49}", text):
        raise ConfigError(
            f"the label {excerpt(text)} may hold letters, digits, space, '.', '_' and '-' only, a letter or digit first, "
            "and at most 50 of them"
        )
    return text


Label = Annotated[str, AfterValidator(_label)]
"""What the user calls a defense, a callback ...; it becomes part of the names of metrics and parameters."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
class Settings:
    """Base of frozen, keyword-only, validated dataclasses that refuse unknown fields: every subclass is one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared: set[str] = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
        for name in get_annotations(cls):
            if name not in vars(cls) and name not in declared and hasattr(cls, name):
                # a base declares it for all; of a class that makes it a setting, it is no default
                setattr(cls, name, dataclass_field())
        if "_truth_values" not in vars(cls):
            cls._truth_values = number_check()  # type: ignore[attr-defined]
        pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)(cls)


def summary(cls: type) -> str:
    """First line of a class's docstring; empty where there is none."""
    return next(iter((cls.__doc__ or "").strip().splitlines()), "")


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values."""
    return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}


def to_plain(value: Any) -> Any:
    """Components, settings, mappings and tuples as the plain values that YAML and JSON know."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
