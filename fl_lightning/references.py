"""The papers that components come from, as BibTeX."""

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["bibtex", "citation", "cited"]

FIELD = re.compile(r"^\s*(\w+)\s*=\s*[{\"](.*?)[}\"],?\s*$", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.DOTALL | re.MULTILINE)


def cited(classes: Iterable[type]) -> dict[str, str | None]:
    """What components cite: key -> BibTeX entry, sorted by key; None where no file has the entry.

    Entries of a component that is not shipped may be in a `references.bib` of its own top-level package.
    """
    found: dict[str, str | None] = {}
    for cls in classes:
        for key in getattr(cls, "cites", ()):
            found[key] = found.get(key) or _entries("fl_lightning").get(key) or _entries(cls.__module__).get(key)
    return dict(sorted(found.items()))


def bibtex(classes: Iterable[type]) -> str:
    """The entries that components cite, one after the other; a comment stands for one that is missing."""
    parts = [entry or f"% no entry for {key}" for key, entry in cited(classes).items()]
    return "\n\n".join(parts) + "\n" if parts else ""


def citation(key: str) -> str:
    """A paper of ours in one line: authors, title, where, year; the key itself where there is no entry.

    Example:
        >>> citation("blanchard2017machine")
        'Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017'
    """
    entry = _entries("fl_lightning").get(key)
    if entry is None:
        return key
    fields = {match[1].lower(): _plain(match[2]) for match in FIELD.finditer(entry)}
    authors = [author.partition(",")[0] for author in fields.get("author", "").split(" and ")]
    who = f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
    where = fields.get("booktitle") or fields.get("journal") or fields.get("howpublished") or fields.get("note", "")
    return f'{who}, "{fields.get("title", "")}", {where} {fields.get("year", "")}'.strip()


def _plain(text: str) -> str:
    """BibTeX's text without braces and accents."""
    return " ".join(re.sub(r"\\\W?|[{}]", "", text).split())


@cache
def _entries(module: str) -> dict[str, str]:
    """The entries of the `references.bib` beside the top-level package of a module, or beside the module itself."""
    file = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    path = Path(file).parent / "references.bib" if file else None
    if path is None or not path.is_file():
        return {}
    return {match[1]: match[0] for match in ENTRY.finditer(path.read_text(encoding="utf-8"))}
