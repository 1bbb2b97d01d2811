"""The command `fl-lightning gc`: what the runs take on disk, and what of it can go; nothing goes without `--yes`."""

import argparse

from rich.table import Table

from fl_lightning.cli._console import shown, wide_console
from fl_lightning.errors import ConfigError, excerpt, suggest
from fl_lightning.paths import runs_folder
from fl_lightning.runs._disk import kinds, size_of

__all__ = ["gc"]


def gc(options: argparse.Namespace) -> int:
    """Print what there is, or remove some of it; returns the exit code.

    Raises:
        ConfigError: no such kind of thing.
    """
    folder = runs_folder()
    known = kinds()
    for word in options.what:
        if word not in known:
            raise ConfigError(f"unknown kind {excerpt(word)}; {suggest(word, known)}")
    chosen = {word: known[word] for word in options.what or known}
    table = Table("kind", "what", "items", "size", box=None)
    for word, kind in chosen.items():
        table.add_row(word, kind.what, str(len(kind.folders)), shown(kind.size))
    console = wide_console()
    console.print(table)
    console.print(f"all of {folder}: {shown(size_of(folder))}", soft_wrap=True, highlight=False)
    if not options.yes or not options.what:
        console.print("nothing was removed; to remove some: fl-lightning gc KIND ... --yes", highlight=False)
        return 0
    freed = 0
    for word, kind in chosen.items():
        before = kind.size
        if kind.folders:
            kind.remove()
        freed += before - kind.size
        console.print(f"{word}: removed {len(kind.folders)}", highlight=False)
    console.print(f"freed {shown(freed)}", highlight=False)
    return 0
