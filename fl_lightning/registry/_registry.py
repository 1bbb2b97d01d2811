"""The components of a slot by name."""

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass as stdlib_dataclass
from functools import cache
from importlib.metadata import EntryPoint
from inspect import isabstract
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import CoreSchema, core_schema

from fl_lightning.errors import ConfigError, excerpt, explain, suggest
from fl_lightning.inputs import read_yaml_file
from fl_lightning.paths import find_config
from fl_lightning.registry._components import NAMES, Component, name_of
from fl_lightning.registry._plugins import OFFERED, PluginError, distribution_of, import_class, imported, plugins

SLOTS = {
    "data": "fl_lightning.data",
    "partition": "fl_lightning.partition",
    "model": "fl_lightning.models",
    "loss": "fl_lightning.models",
    "optimizer": "fl_lightning.clients",
    "scheduler": "fl_lightning.clients",
    "callback": "fl_lightning.clients",
    "participation": "fl_lightning.participation",
    "schedule": "fl_lightning.participation",
    "attack": "fl_lightning.attacks",
    "objective": "fl_lightning.attacks",
    "pattern": "fl_lightning.attacks",
    "defense": "fl_lightning.defenses",
    "aggregator": "fl_lightning.aggregators",
    "pre_aggregator": "fl_lightning.aggregators",
    "engine": "fl_lightning.engines",
    "metric": "fl_lightning.metrics",
}


NAME = re.compile(r"\w{1,100}")
"""What names a component, and with it a file in `configs/`: a word, never a path."""


class Registry:
    """The components of one slot by name.

    A name is one of the shipped components, an entry point of the group `fl_lightning.<slot>`, or `module:Class`. What is
    not shipped is imported when it is asked for, and only then.

    Args:
        slot: name of the slot, as configurations write it.
        base: what every class of the slot derives from; `module:Class` where its import takes long.
        shipped: the classes shipped with the project; a mapping where they do not carry their names, or are `module:Class`.
    """

    def __init__(
        self, slot: str, base: type | str, shipped: Iterable[type[Component]] | Mapping[str, type] | Mapping[str, str]
    ):
        self.slot = slot
        self._base = base
        self._shipped: dict[str, Any] = (
            dict(shipped) if isinstance(shipped, Mapping) else {cls.name: cls for cls in shipped}
        )
        self._local: dict[str, type] = {}
        NAMES.update({cls: name for name, cls in self._shipped.items() if isinstance(cls, type)})

    @property
    def base(self) -> Any:
        """What every class of the slot derives from."""
        return imported(self._base) if isinstance(self._base, str) else self._base

    def shipped(self) -> list[str]:
        """Names of the components shipped with the project, sorted."""
        return sorted(self._shipped)

    def names(self) -> list[str]:
        """All names, sorted; those of plug-ins before anything of them is imported."""
        return sorted({*self._shipped, *plugins(self.slot)})

    def __getitem__(self, name: str) -> type[Any]:
        offered = plugins(self.slot).get(name, ())
        shipped = ["fl-lightning"] if name in self._shipped else []
        if len(offered) + len(shipped) > 1:
            rivals = " and by ".join(shipped + [distribution_of(entry) for entry in offered])
            raise PluginError(f"{self.slot} {name!r} is defined by {rivals}: uninstall one, or use module:Class")
        if shipped:
            cls = self._shipped[name]
            if isinstance(cls, str):
                cls = self._shipped[name] = imported(cls)
                NAMES[cls] = name
            return cast(type, cls)
        if offered:
            return self._load(offered[0])
        if ":" in name:
            return self._local.get(name) or self._checked(import_class(name), name)
        raise ConfigError(f"unknown {self.slot} {excerpt(name)}; {suggest(name, self.names())}")

    def _load(self, entry: EntryPoint) -> type[Any]:
        who = f"{self.slot} {entry.name!r} of {distribution_of(entry)}"
        try:
            cls = entry.load()
        except Exception as error:  # whatever a foreign module raises while it is imported
            raise PluginError(f"{who} cannot be loaded: {type(error).__name__}: {error}") from error
        cls = self._checked(cls, who)
        NAMES[cls], OFFERED[cls] = entry.name, entry
        return cls

    def _checked(self, cls: Any, who: str) -> type[Any]:
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise PluginError(f"{who} is not a {self.slot}: it must derive from {self.base.__name__}, got {cls!r}")
        if isabstract(cls):
            raise PluginError(f"{who} does not define {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}")
        if issubclass(cls, Component) and not hasattr(cls, "name"):
            raise PluginError(f"{who} has no name: set `name: ClassVar[str]`")
        return cls

    def __iter__(self) -> Iterator[type[Any]]:
        """Every class that can be loaded; a warning tells of those that cannot."""
        for name in self.names():
            try:
                yield self[name]
            except PluginError as error:
                _warn_once(str(error))

    def build(self, value: Any) -> Any:
        """A component from a component, a name, or a mapping with the key `name`.

        A name is first looked up as `<slot>/<name>.yaml` in the user's and the shipped configurations, then taken for the
        component with its defaults.

        Raises:
            ConfigError: unknown name or key, a value out of range, or a missing required field.
        """
        if isinstance(value, Component):
            if not isinstance(value, self.base):
                raise ConfigError(f"{excerpt(value)} is not a {self.slot}")
            self._local[name_of(type(value))] = type(value)
            return value
        if isinstance(value, str):
            value = named_config(self.slot, value) or {"name": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a name or a mapping with the key 'name', got {excerpt(value)}")
        rest = {str(key): item for key, item in value.items()}
        name = rest.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"needs the key 'name'; valid: {', '.join(self.names())}")
        cls = self[name]
        try:
            return cls(**rest)
        except ValidationError as error:
            explain(error, cls)


@cache
def _warn_once(message: str) -> None:
    logging.getLogger("fl_lightning").warning("%s", message)


def named_config(slot: str, name: str) -> Any:
    """Content of `<slot>/<name>.yaml` in the user's configurations or the shipped ones.

    None where there is no such file, or where `name` is no plain word.

    Raises:
        ConfigError: the file is no YAML.
    """
    path = find_config(slot, name) if NAME.fullmatch(name) else None
    return read_yaml_file(path) if path else None


@cache
def registry(slot: str) -> Registry:
    """The registry of a slot; imports its package on first use.

    Raises:
        ConfigError: there is no such slot.
    """
    if slot not in SLOTS:
        raise ConfigError(f"unknown slot {excerpt(slot)}; {suggest(slot, SLOTS)}")
    module = importlib.import_module(SLOTS[slot])
    registries: dict[str, Registry] = module.REGISTRIES
    return registries[slot]


SLOT_KEY = "x-slot"
"""Where a JSON schema says that a component of a slot belongs."""


@stdlib_dataclass(frozen=True)
class Slot:
    """Annotation of a field that holds a component: `objective: Annotated[Objective, Slot("objective")]`."""

    slot: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        """Validation by the slot's registry."""
        return core_schema.no_info_plain_validator_function(lambda value: registry(self.slot).build(value))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """The slot's name; what it can hold is put in its place when a whole schema is written."""
        return {SLOT_KEY: self.slot}
