"""The little of Hydra that configurations of neighbours use: lists of defaults, `${...}` and `???`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import ConfigError
from fl_lightning.inputs import read_yaml_file
from fl_lightning.registry import NAME

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def composed(path: Path) -> dict[str, Any]:
    """A file with its defaults from the files beside it, and with its references filled in.

    Raises:
        ConfigError: a file of the defaults is missing, or they name each other in a circle.
    """
    whole = _composed(path, ())
    filled: dict[str, Any] = _filled(whole, whole)
    return filled


def _composed(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path} is among its own defaults")
    values = read_yaml_file(path)
    values = dict(values) if isinstance(values, Mapping) else {}
    entries = values.pop("defaults", None) or []
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    made: dict[str, Any] = {}
    for entry in entries:
        if entry == "_self_":
            made = _merged(made, values)
        elif isinstance(entry, str):
            made = _merged(made, _composed(_file(path, entry), (*above, path)))
        elif isinstance(entry, Mapping):
            for group, option in entry.items():
                if str(group).startswith("override") or option in (None, "???"):
                    continue
                inner = _composed(_file(path, f"{group}/{option}"), (*above, path))
                made = _merged(made, {str(group).rpartition("/")[2]: inner})
    return made


def _file(path: Path, name: str) -> Path:
    if not all(NAME.fullmatch(part) for part in name.split("/")):
        raise ConfigError(f"{path} has the default {name!r}, which is no plain name")
    file = path.parent / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"{path} needs {name}.yaml beside it, which is not there")
    return file


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = _merged(made[key], value) if both else value
    return made


def _filled(value: Any, whole: Mapping[str, Any], depth: int = 0) -> Any:
    """References to other settings replaced by what they name; what is to be set at run time is dropped."""
    if isinstance(value, Mapping):
        return {key: _filled(item, whole, depth) for key, item in value.items() if item != "???"}
    if isinstance(value, list):
        return [_filled(item, whole, depth) for item in value]
    if isinstance(value, str) and (match := REFERENCE.fullmatch(value.strip())) and depth < 10:
        found: Any = whole
        for key in match[1].split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return _filled(found, whole, depth + 1)
    return value
