"""Of what classes a value is made, and which of them are not shipped."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from inspect import getfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fl_lightning.errors import ConfigError
from fl_lightning.registry._components import Component
from fl_lightning.registry._plugins import OFFERED


def parts(value: Any) -> Iterator[type]:
    """The classes of all components in a value, outer ones first."""
    if isinstance(value, Component):
        yield type(value)
    elif isinstance(getattr(value, "cls", None), type):
        yield value.cls
    if is_dataclass(value):
        inner: Iterable[Any] = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, BaseModel):
        yield from getattr(value, "combined", ())
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
        if cls in OFFERED and (dist := OFFERED[cls].dist):
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
