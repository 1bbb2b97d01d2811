"""What the readers of foreign configurations share: settings that are taken one by one, so that what is left can be named."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fl_lightning.errors import ConfigError


class Source:
    """A foreign mapping of which every key is either taken, known to have no effect on figures, or named as not translated.

    Args:
        values: the mapping.
        path: where it stands in the file.
        unknown: names of what was not translated; shared by all parts of a file.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", unknown: list[str] | None = None):
        self.values = {str(key).strip("\"'"): number(value) for key, value in values.items()}
        self.path = path
        self.unknown: list[str] = [] if unknown is None else unknown
        self.taken: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, which counts as translated."""
        self.taken.add(key)
        return self.values.get(key, default)

    def part(self, key: str) -> "Source":
        """The mapping under a key; empty where there is none."""
        value = self.get(key)
        return Source(value if isinstance(value, Mapping) else {}, f"{self.path}{key}.", self.unknown)

    def need(self, key: str) -> Any:
        """The value of a key that must be there.

        Raises:
            ConfigError: it is not.
        """
        if key not in self.values:
            raise ConfigError("is missing: not the configuration that it seems to be", f"{self.path}{key}")
        return self.get(key)

    def ignore(self, *keys: str) -> None:
        """These say nothing about what is computed, such as folders and devices."""
        self.taken.update(keys)

    def say(self, key: str, why: str = "") -> None:
        """Name a setting as not translated."""
        self.taken.add(key)
        value = self.values.get(key)
        self.unknown.append(f"{self.path}{key}: {value}" + (f" ({why})" if why else ""))

    def close(self) -> None:
        """Name everything that nobody has taken."""
        for key, value in self.values.items():
            if key not in self.taken and value not in (None, {}, []):
                self.say(key)


def number(value: Any) -> Any:
    """Numbers that other readers of YAML see in `5e-4`."""
    if isinstance(value, str) and value[:1] in "+-.0123456789" and not value.isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return value


class Word(NamedTuple):
    """What a method of theirs is called here.

    Attributes:
        here: our mapping, with the settings that theirs has always.
        keys: their parameter -> our field, dotted where it lies deeper.
        differs: what is not the same, in a few words.
    """

    here: Mapping[str, Any]
    keys: Mapping[str, str] = {}
    differs: str = ""


def translated(word: Word, parameters: Source, label: str) -> dict[str, Any]:
    """Our mapping of a method with its parameters; those without a counterpart are named."""
    made: dict[str, Any] = _copy(word.here)
    for theirs, ours in word.keys.items():
        value = parameters.get(theirs)
        if value is not None:
            _put(made, ours, value)
    parameters.close()
    if word.differs:
        parameters.unknown.append(f"{label}: {word.differs}")
    return made


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _put(made: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for key in outer:
        made = made.setdefault(key, {})
    made[last] = value


def listed(value: Any) -> list[Any]:
    """A value, or what a list of values holds."""
    return list(value) if isinstance(value, list | tuple) else [value]


def labels(names: Iterator[str] | list[str]) -> list[str]:
    """The names, a number behind those that come again."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return made


class Study(NamedTuple):
    """What a foreign configuration asks for.

    Attributes:
        base: slots of an experiment.
        attacks: label -> attack; None: nobody attacks.
        servers: label -> changes of the base.
        seeds: one run a seed.
        unknown: what could not be translated, by its name there.
    """

    base: dict[str, Any]
    attacks: dict[str, dict[str, Any] | None]
    servers: dict[str, dict[str, Any]]
    seeds: list[int]
    unknown: list[str]
