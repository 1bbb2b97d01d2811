"""What bad input is told: where it is wrong, what was received, what would be right."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pydantic import ValidationError

__all__ = ["ConfigError", "errors_under", "explain", "suggest"]

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
UNION_MEMBER = re.compile(r"\w+\[.*\]$|constrained-")


class ConfigError(ValueError):
    """A configuration that cannot be run: where it is wrong, what was received, what would be right."""

    def __init__(self, message: str, path: str = ""):
        self.message = message
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)

    def under(self, path: str) -> "ConfigError":
        """The same error seen from further outside: `lr` under `client.optimizer` is `client.optimizer.lr`."""
        return ConfigError(self.message, ".".join(part for part in (path, self.path) if part))


@contextmanager
def errors_under(path: str) -> Iterator[None]:
    """Errors of a configuration inside are seen from `path`."""
    try:
        yield
    except ConfigError as error:
        raise error.under(path) from None


def suggest(wrong: str, valid: Iterable[str]) -> str:
    """`did you mean 'krum'? valid: krum, mean` for a misspelt name."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(names) or 'none'}"


def explain(error: ValidationError, valid: Iterable[str]) -> NoReturn:
    """Raise the first problem of a pydantic error as a `ConfigError` that names key, value and what is allowed."""
    # A misspelt key is told before the required one that is missing because of it.
    first = min(error.errors(), key=lambda one: one["type"] not in UNKNOWN)
    # Where a field takes one of several types, pydantic appends the type that it tried: no part of the user's path.
    path = ".".join(str(part) for part in first["loc"] if not UNION_MEMBER.match(str(part)))
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        raise inner.under(path) from None
    if first["type"] in UNKNOWN:
        raise ConfigError(f"unknown key; {suggest(str(first['loc'][-1]), valid)}", path) from None
    if first["type"].startswith("missing"):
        raise ConfigError("required, but not given", path) from None
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if inner is not None else f", got {first['input']!r}"
    raise ConfigError(f"{message[0].lower()}{message[1:]}{shown}", path) from None
