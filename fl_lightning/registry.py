"""What a component is, and how a configuration names one.

A component *is* its configuration: a frozen dataclass whose fields are the hyper-parameters. Every slot of an
experiment (`aggregator`, `attack`, ...) has one `Registry`, filled by explicit imports; installed packages add
their own through the entry-point group `fl_lightning.<slot>`, and `module:Class` names any importable class.
"""

import hashlib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass as stdlib_dataclass
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from inspect import get_annotations, getfile, isabstract
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast, dataclass_transform, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs, CoreSchema, core_schema

from fl_lightning.errors import ConfigError, errors_under, excerpt, explain, suggest
from fl_lightning.inputs import read_yaml_file
from fl_lightning.paths import find_config

__all__ = [
    "Component",
    "ConfigError",
    "Label",
    "PluginError",
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

NAME = re.compile(r"\w{1,100}")
"""What names a component, and with it a file in `configs/`: a word, never a path."""

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
        return {"name": name_of(type(self)), **plain_fields(self)}

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return summary(cls)


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


class PluginError(ConfigError):
    """A component of another distribution, or of the user's own module, that cannot be used; everything else can."""


@cache
def plugins(slot: str) -> dict[str, tuple[EntryPoint, ...]]:
    """What installed distributions offer for a slot, by name; nothing of it is imported yet."""
    offered: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=f"fl_lightning.{slot}"):
        # A checkout on the path beside its installed twin shows the same entry point twice.
        offered.setdefault(entry.name, {})[distribution_of(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in offered.items()}


def distribution_of(entry: EntryPoint) -> str:
    """`acme-rules 1.2`: who offers an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


_NAMES: dict[type, str] = {}
"""How a configuration names a class: its name in the registry, or `module:Class`."""


_OFFERED: dict[type, EntryPoint] = {}
"""Which entry point a class came from."""


def name_of(cls: type) -> str:
    """What a configuration calls a component's class: its registered name, else `module:Class`."""
    return _NAMES.get(cls) or f"{cls.__module__}:{cls.__qualname__}"


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
        _NAMES.update({cls: name for name, cls in self._shipped.items() if isinstance(cls, type)})

    @property
    def base(self) -> Any:
        """What every class of the slot derives from."""
        return _imported(self._base) if isinstance(self._base, str) else self._base

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
                cls = self._shipped[name] = _imported(cls)
                _NAMES[cls] = name
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
        _NAMES[cls], _OFFERED[cls] = entry.name, entry
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


_may_import: ContextVar[bool] = ContextVar("may_import", default=True)


@contextmanager
def no_imports() -> Iterator[None]:
    """Inside, `module:Class` names only what this process has imported before: for configurations of strangers."""
    token = _may_import.set(False)
    try:
        yield
    finally:
        _may_import.reset(token)


def import_class(path: str) -> Any:
    """What `module:Class` names; the working folder is searched, too, after everything that is installed.

    Raises:
        PluginError: no such module or class, or the module cannot be imported.
    """
    module_name, _, qualified = path.partition(":")
    if not module_name or not qualified:
        raise PluginError(f"expected module:Class, got {excerpt(path)}")
    if not _may_import.get() and module_name not in sys.modules:
        raise PluginError(
            f"{path} is code of {module_name}, which is not imported for a configuration that is not trusted"
        )
    try:
        try:
            return _imported(path)
        except ModuleNotFoundError:
            if "" in sys.path or os.getcwd() in sys.path:
                raise
            sys.path.append(os.getcwd())
            return _imported(path)
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise PluginError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _imported(path: str) -> Any:
    module_name, _, qualified = path.partition(":")
    return attrgetter(qualified)(importlib.import_module(module_name))


def parts(value: Any) -> Iterator[type]:
    """The classes of all components in a value, outer ones first."""
    if isinstance(value, Component):
        yield type(value)
    elif isinstance(getattr(value, "cls", None), type):
        yield value.cls
    if is_dataclass(value):
        inner: Iterable[Any] = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, BaseModel):
        inner = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        inner = value.values()
    else:
        inner = value if isinstance(value, list | tuple) else ()
    for item in inner:
        yield from parts(item)


def foreign(value: Any) -> dict[str, str]:
    """What is not shipped in a value, with its version: `{"acme-rules": "1.2"}`.

    A module that belongs to no distribution counts with a digest of its source, so that an edit shows.
    """
    versions: dict[str, str] = {}
    for cls in parts(value):
        top = cls.__module__.partition(".")[0]
        if top == "fl_lightning":
            continue
        if cls in _OFFERED and (dist := _OFFERED[cls].dist):
            versions[dist.name] = dist.version
        elif owners := _distributions().get(top):
            versions |= {owner: version(owner) for owner in owners}
        else:
            versions[cls.__module__] = _source_digest(cls)
    return dict(sorted(versions.items()))


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level module -> the distributions that it belongs to; takes a second where many are installed."""
    return packages_distributions()


def _source_digest(cls: type) -> str:
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(getfile(cls)).read_bytes()).hexdigest()[:12]
    return "unknown"


def refuse_unreachable(value: Any) -> None:
    """Raise a ConfigError where another process could not import a component of a value."""
    for cls in parts(value):
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            raise ConfigError(
                f"{cls.__qualname__} of {cls.__module__} cannot be imported by worker processes: move it into a module, "
                "or run with jobs=1"
            )


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
