"""What a component is, and how a configuration names one.

A component *is* its configuration: a frozen dataclass whose fields are the hyper-parameters. Every slot of an
experiment (`aggregator`, `attack`, ...) has one `Registry`, filled by explicit imports; installed packages add
their own through the entry-point group `fl_lightning.<slot>`.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass as stdlib_dataclass
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, core_schema

from fl_lightning.errors import ConfigError, errors_under, explain, suggest
from fl_lightning.paths import CONFIGS

__all__ = [
    "Component",
    "ConfigError",
    "Registry",
    "Settings",
    "Slot",
    "component",
    "errors_under",
    "flatten",
    "registry",
    "suggest",
    "to_plain",
]

T = TypeVar("T")

SLOTS = {
    "data": "fl_lightning.data",
    "partition": "fl_lightning.partition",
    "model": "fl_lightning.models",
    "optimizer": "fl_lightning.clients",
    "participation": "fl_lightning.participation",
    "schedule": "fl_lightning.participation",
    "attack": "fl_lightning.attacks",
    "objective": "fl_lightning.attacks",
    "pattern": "fl_lightning.attacks",
    "defense": "fl_lightning.defenses",
    "aggregator": "fl_lightning.aggregators",
    "engine": "fl_lightning.engines",
}


STRICT = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=True, validate_default=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
class Settings:
    """Base of frozen, keyword-only, validated dataclasses that refuse unknown fields: every subclass is one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)(cls)


def component(cls: type[T]) -> type[T]:
    """Mark a component: nothing is left to do where the class derives from `Component` or `Settings`.

    Raises:
        TypeError: it does not.
    """
    if not issubclass(cls, Settings):
        raise TypeError(f"{cls.__qualname__} is no component: derive it from the base of its slot, such as Aggregator")
    return cls


class Component(Settings):
    """Base of everything that a configuration can name.

    Subclasses set `name`, the word that configurations use; their annotated fields are the hyper-parameters. A field
    annotated with a search range (`Tunable`) is found by the sweep.

    Attributes:
        cites: keys into `references.bib` of the papers that the component comes from.
    """

    name: ClassVar[str]
    cites: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The mapping that builds this component again: `{"name": ..., field: value, ...}`."""
        return {"name": self.name, **plain_fields(self)}

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


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


class Registry:
    """The components of one slot by name.

    Args:
        slot: name of the slot, as configurations write it.
        components: the classes shipped with the project.
    """

    def __init__(self, slot: str, components: Iterable[type[Component]]):
        self.slot = slot
        self._classes = {cls.name: cls for cls in components}
        for entry in entry_points(group=f"fl_lightning.{slot}"):
            outside = entry.load()
            self._classes[outside.name] = outside

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._classes)

    def __getitem__(self, name: str) -> type[Component]:
        if name not in self._classes:
            raise ConfigError(f"unknown {self.slot} {name!r}; {suggest(name, self._classes)}")
        return self._classes[name]

    def __iter__(self) -> Iterator[type[Component]]:
        return iter([self._classes[name] for name in self.names()])

    def build(self, value: Any) -> Any:
        """A component from a component, a name, or a mapping with the key `name`.

        A name is first looked up as `configs/<slot>/<name>.yaml`, then taken for the component with its defaults.

        Raises:
            ConfigError: unknown name or key, a value out of range, or a missing required field.
        """
        if isinstance(value, Component):
            if not isinstance(value, tuple(self._classes.values())):
                raise ConfigError(f"{value!r} is not a {self.slot}")
            return value
        if isinstance(value, str):
            value = named_config(self.slot, value) or {"name": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a name or a mapping with the key 'name', got {value!r}")
        rest = {str(key): item for key, item in value.items()}
        name = rest.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"needs the key 'name'; valid: {', '.join(self.names())}")
        cls = self[name]
        try:
            return cls(**rest)
        except ValidationError as error:
            explain(error, (field.name for field in fields(cls)))


def named_config(slot: str, name: str) -> Any:
    """Content of `configs/<slot>/<name>.yaml`, or None when there is no such file."""
    path = CONFIGS / slot / f"{name}.yaml"
    if not path.is_file():
        return None
    return yaml.safe_load(path.read_text())


@cache
def registry(slot: str) -> Registry:
    """The registry of a slot; imports its package on first use.

    Raises:
        ConfigError: there is no such slot.
    """
    if slot not in SLOTS:
        raise ConfigError(f"unknown slot {slot!r}; {suggest(slot, SLOTS)}")
    module = importlib.import_module(SLOTS[slot])
    registries: dict[str, Registry] = module.REGISTRIES
    return registries[slot]


@stdlib_dataclass(frozen=True)
class Slot:
    """Annotation of a field that holds a component: `objective: Annotated[Objective, Slot("objective")]`."""

    slot: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        """Validation by the slot's registry."""
        return core_schema.no_info_plain_validator_function(lambda value: registry(self.slot).build(value))
