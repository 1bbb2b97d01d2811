"""What bad input is told: where it is wrong, what was received, what would be right."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

__all__ = ["ConfigError", "errors_under", "excerpt", "explain", "masked", "one_line", "suggest"]

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
UNION_MEMBER = re.compile(r"\w+\[.*\]$|constrained-")
EXCERPT, WORD, LINE = 80, 200, 2000
"""Characters of a value that are shown, of a word, and of a message."""
# Up to the last @ of the word: a password may hold @, : and /.
PASSWORD = re.compile(r"(\w://[^\s:/@]*):\S*@|(password=)[^&\s'\"]+", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot be run: where it is wrong, what was received, what would be right."""

    def __init__(self, message: str, path: str = ""):
        self.message = one_line(message)
        self.path = path
        super().__init__(f"{path}: {self.message}" if path else self.message)

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


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it.

    Example:
        >>> masked("no answer from http://alice:s3cr3t@host:5000/x")
        'no answer from http://alice:***@host:5000/x'
    """
    return PASSWORD.sub(lambda found: f"{found[2]}***" if found[2] else f"{found[1]}:***@", text)


def excerpt(value: Any) -> str:
    """A value as a message shows it: whole where it is short, else its beginning and how long it is.

    Example:
        >>> excerpt("a" * 5000)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa... (5,002 characters)"
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        return f"a number of {value.bit_length():,} bits"
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}... ({len(text):,} characters)"


def one_line(text: str) -> str:
    """A message as one line without passwords, whatever was quoted in it."""
    words = (word if len(word) <= WORD else f"{word[:EXCERPT]}... ({len(word):,} characters)" for word in text.split())
    line = masked(" ".join(words))
    return line if len(line) <= LINE else f"{line[:LINE]}..."


def suggest(wrong: str, valid: Iterable[str]) -> str:
    """`did you mean 'krum'? valid: krum, mean` for a misspelt name."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong[:WORD], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(names) or 'none'}"


def explain(error: ValidationError, model: Any) -> NoReturn:
    """Raise the first problem of a pydantic error as a `ConfigError` that names key, value and what is allowed.

    Args:
        error: what pydantic says.
        model: the model or dataclass that was to be built; its keys, or those of the part with the problem, are suggested.
    """
    # A misspelt key is told before the required one that is missing because of it.
    first = min(error.errors(), key=lambda one: one["type"] not in UNKNOWN)
    # Where a field takes one of several types, pydantic appends the type that it tried: no part of the user's path.
    parts = [str(part) for part in first["loc"] if not UNION_MEMBER.match(str(part))]
    path = one_line(".".join(part for part in parts if part != "[key]"))
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        raise inner.under(path) from None
    if first["type"] in UNKNOWN:
        raise ConfigError(f"unknown key; {suggest(parts[-1], _keys(model, parts[:-1]))}", path) from None
    if first["type"].startswith("missing"):
        raise ConfigError("required, but not given", path) from None
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if inner is not None else f", got {excerpt(first['input'])}"
    raise ConfigError(f"{message[0].lower()}{message[1:]}{shown}", path) from None


def _keys(model: Any, path: Iterable[str]) -> list[str]:
    """The keys of the part of a model that lies at a path; none where it has no fixed ones."""
    for part in path:
        fields = _fields(model)
        if part in fields:
            model = getattr(fields[part], "annotation", None) or fields[part].type
        elif values := [kind for kind in get_args(model) if _fields(kind)]:
            model = values[-1]  # `part` is a key or a place in a container
    inside = [model, *get_args(model)]
    return list(next((fields for kind in inside if (fields := _fields(kind))), {}))


def _fields(model: Any) -> Mapping[str, Any]:
    """The declared fields of a pydantic model or a dataclass by name."""
    if not isinstance(model, type):
        return {}
    known: Mapping[str, Any] = getattr(model, "__pydantic_fields__", {})
    return known or (
        {field.name: field for field in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
    )
