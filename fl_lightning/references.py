"""The papers that components come from, as BibTeX."""

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["bibtex", "cited"]

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


@cache
def _entries(module: str) -> dict[str, str]:
    """The entries of the `references.bib` beside the top-level package of a module, or beside the module itself."""
    file = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    path = Path(file).parent / "references.bib" if file else None
    if path is None or not path.is_file():
        return {}
    return {match[1]: match[0] for match in ENTRY.finditer(path.read_text())}
