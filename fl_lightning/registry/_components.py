"""What a component is: its configuration."""

from typing import Any, ClassVar

from fl_lightning.registry._settings import Settings, T, plain_fields, summary

NAMES: dict[type, str] = {}
"""How a configuration names a class: its name in the registry, or `module:Class`."""


def name_of(cls: type) -> str:
    """What a configuration calls a component's class: its registered name, else `module:Class`."""
    return NAMES.get(cls) or f"{cls.__module__}:{cls.__qualname__}"


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
