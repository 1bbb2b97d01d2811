"""What is not shipped: entry points of installed distributions, and classes that a configuration names by their module."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any

from fl_lightning.errors import ConfigError, excerpt


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


OFFERED: dict[type, EntryPoint] = {}
"""Which entry point a class came from."""


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
            f"{path} is code of {module_name}, which is not imported for a configuration that is not trusted (--trust, if it is "
            "your own)"
        )
    try:
        try:
            return imported(path)
        except ModuleNotFoundError:
            if "" in sys.path or os.getcwd() in sys.path:
                raise
            sys.path.append(os.getcwd())
            return imported(path)
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise PluginError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def imported(path: str) -> Any:
    module_name, _, qualified = path.partition(":")
    return attrgetter(qualified)(importlib.import_module(module_name))
