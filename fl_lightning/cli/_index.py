"""What is known of every shipped component without importing it: an index that `docs/generate.py` writes.

Importing all components takes seconds, because torch does; a listing answers at once.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_type_hints

__all__ = ["FILE", "about", "field_rows", "index", "prose", "written"]

FILE = Path(__file__).with_name("index.json")

Entry = Mapping[str, Any]
"""What an index says of a component: `summary`, `text`, `fields`, `cites`, for an attack `needs` and `serves`."""

BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


@cache
def index() -> Mapping[str, Mapping[str, Entry]]:
    """Slot -> name -> what is known, of the components that are shipped."""
    known: Mapping[str, Mapping[str, Entry]] = json.loads(FILE.read_text(encoding="utf-8"))
    return known


def written(measured: Mapping[str, str]) -> str:
    """The index as the classes have it today: one line a component, so that two additions do not meet in one line.

    Args:
        measured: attack -> what rules left of it.
    """
    from fl_lightning.registry import SLOTS, registry

    slots = []
    for slot in SLOTS:
        names = sorted(registry(slot).shipped())
        entries = {name: about(registry(slot)[name]) for name in names}
        if slot == "attack":
            entries |= {name: entries[name] | {"measured": text} for name, text in measured.items() if name in entries}
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        slots.append(f" {json.dumps(slot)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(slots) + "\n}\n"


def about(cls: type) -> dict[str, Any]:
    """What the index holds of a class."""
    from fl_lightning.registry import summary

    text, meanings = prose(cls)
    known: dict[str, Any] = {"summary": summary(cls), "text": text.partition("\n")[2].strip()}
    known["fields"] = [row | {"meaning": meanings.get(row["name"], "")} for row in field_rows(cls)]
    known["cites"] = list(getattr(cls, "cites", ()))
    if hasattr(cls, "serves"):
        known |= {"needs": cls.needs, "serves": list(cls.serves)}  # type: ignore[attr-defined]
    return known


def prose(cls: type) -> tuple[str, dict[str, str]]:
    """A class docstring without its list of attributes, and what that list says of each; own ones before inherited ones."""
    meanings: dict[str, str] = {}
    for parent in cls.__mro__:
        listed = _split(cleandoc(vars(parent).get("__doc__") or ""))[1]
        for found in re.finditer(r"^(\w+): (.*(?:\n[ \t]+.*)*)", textwrap.dedent(listed), re.MULTILINE):
            meanings.setdefault(found[1], " ".join(found[2].split()))
    return _split(cleandoc(cls.__doc__ or ""))[0].strip(), meanings


def _split(doc: str) -> tuple[str, str]:
    """What stands before the list of attributes, or arguments, and that list."""
    parts = re.split(r"\n(?:Attributes|Args):\n", doc, maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def field_rows(cls: Any) -> Iterator[dict[str, str]]:
    """One row a hyper-parameter: name, default, allowed range, range of a search."""
    known = getattr(cls, "__pydantic_fields__", None)
    if known is None:
        return
    hints, kinds = get_type_hints(cls, include_extras=True), get_type_hints(cls)
    for field in fields(cls):
        info = known[field.name]
        default = "required" if info.is_required() else _shown(info.get_default(call_default_factory=True))
        bounds = [
            f"{sign} {getattr(mark, word)}" for mark in info.metadata for word, sign in BOUNDS if hasattr(mark, word)
        ]
        span = next((mark for mark in getattr(hints[field.name], "__metadata__", ()) if hasattr(mark, "holds")), None)
        yield {
            "name": field.name,
            "default": default,
            "range": ", ".join(bounds) or _kind(kinds[field.name]),
            "searched": _searched(span),
        }


def _shown(default: Any) -> str:
    text = str(getattr(default, "name", default)) if hasattr(default, "to_dict") else str(default)
    return text if len(text) < 40 else text[:37] + "..."


def _kind(annotation: Any) -> str:
    """A type in the words of the documentation."""
    text = re.sub(r"typing\.|<class '|'>", "", str(annotation))
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), text)
    return "" if "fl_lightning" in text else text.replace("|", "or").replace("None", "null")


def _searched(span: Any) -> str:
    if span is None:
        return ""
    if hasattr(span, "values"):
        return ", ".join(map(str, span.values))
    return f"{span.low:g} to {span.high:g}" + (" (log)" if span.log else "")
