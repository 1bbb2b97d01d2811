"""The command `fl-lightning list`: what there is, from an index, without importing torch."""

import argparse
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fl_lightning.cli._console import plain_console
from fl_lightning.cli._index import Entry, index
from fl_lightning.paths import CONFIGS, config_folders, config_names, find_config

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["listing"]

FILES = {"experiment": "experiments", "matrix": "matrices", "sweep": "searches", "client": "client settings"}
"""Kinds of configurations that are no components."""

LEVELS = {
    "none": "its own data, its own honest updates and the broadcast models",
    "partial": "also the aggregation rule, and some benign updates where the setting grants them",
    "full": "also every benign update and its data, and the defenses",
}


def listing(options: argparse.Namespace) -> int:
    """Print a slot, all slots, or all about one component; returns the exit code.

    Raises:
        ConfigError: no such slot, or no such name in it.
    """
    console = plain_console()
    if options.plugins:
        from fl_lightning.cli._tables import print_plugins
        from fl_lightning.registry import SLOTS

        print_plugins([options.slot] if options.slot else list(SLOTS))
    elif options.name:
        _print_one(console, options.slot, options.name)
    elif options.slot:
        _print_slot(console, options.slot)
        console.print(f"all about one: fl-lightning list {options.slot} NAME", soft_wrap=True)
    else:
        for slot in [*FILES, "paper", *index()]:
            _print_slot(console, slot)
            console.print()
    return 0


def _print_slot(console: Console, slot: str) -> None:
    rows = list(_rows(slot))
    papers = any(paper for *_, paper in rows)
    table = Table(title=slot, title_justify="left", box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    if papers:
        table.add_column("paper", no_wrap=True)
    for name, what, paper in rows:
        table.add_row(name, what, *[paper] * papers)
    console.print(table)


def _rows(slot: str) -> Iterator[tuple[str, str, str]]:
    """Name, one line, and paper."""
    if slot in FILES:
        yield from ((name, first_comment(slot, name), "") for name in config_names(slot))
    elif slot == "paper":
        yield from _tables()
    else:
        known = _known(slot)
        for name in sorted({*known, *_plugins(slot)}):
            entry = known.get(name) or _of_plugin(slot, name)
            yield name, entry["summary"], ", ".join(map(_author_year, entry["cites"][:1]))
        shipped = {path.stem for folder in config_folders() for path in (folder / slot).glob("*.yaml")}
        for name in sorted(shipped - set(known) - set(_plugins(slot))):
            yield name, first_comment(slot, name) or "settings", ""


def _known(slot: str) -> dict[str, Entry]:
    if slot not in index():
        from fl_lightning.errors import ConfigError, excerpt, suggest  # pydantic comes with them

        raise ConfigError(f"unknown slot {excerpt(slot)}; {suggest(slot, [*FILES, 'paper', *index()])}")
    return dict(index()[slot])


def _plugins(slot: str) -> list[str]:
    """Names that installed packages add; what they are is only known by importing them."""
    return sorted({entry.name for entry in _entry_points() if entry.group == f"fl_lightning.{slot}"})


@cache
def _entry_points() -> "list[EntryPoint]":
    """Of every installed package: a file of each is read, so once for all slots."""
    from importlib.metadata import distributions

    return [entry for distribution in distributions() for entry in distribution.entry_points]


def _of_plugin(slot: str, name: str) -> Entry:
    from fl_lightning.cli._index import about
    from fl_lightning.registry import PluginError, registry

    try:
        return about(registry(slot)[name])
    except PluginError as error:
        return {"summary": f"refused: {error}", "cites": [], "fields": [], "text": ""}


def _tables() -> Iterator[tuple[str, str, str]]:
    """The tables of the papers that can be run again."""
    for path in sorted((CONFIGS / "paper").glob("*/*.yaml")):
        title = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("title:")), "")
        yield f"{path.parent.name}:{path.stem}", title.removeprefix("title:").strip(" '\""), ""


def _author_year(key: str) -> str:
    """`baruch2019little` as `Baruch 2019`."""
    name = key.rstrip("abcdefghijklmnopqrstuvwxyz-_")
    author, year = name[:-4], name[-4:]
    return f"{author.capitalize()} {year}" if year.isdigit() else key


def first_comment(kind: str, name: str) -> str:
    """The first sentence of the comment that a configuration begins with."""
    path = find_config(kind, name)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    text = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    sentence, ends, _ = text.partition(". ")
    return sentence + ends.rstrip()


def _print_one(console: Console, slot: str, name: str) -> None:
    """All about one component: what, fields, threat model, papers, as shipped."""
    path = find_config(slot, name)
    known = {} if slot in FILES else _known(slot)
    entry = known.get(name) or (_of_plugin(slot, name) if name in _plugins(slot) else None)
    if entry is None and path is None:
        from fl_lightning.errors import ConfigError, excerpt, suggest

        names = sorted({*known, *config_names(slot), *_plugins(slot)})
        raise ConfigError(f"unknown {slot} {excerpt(name)}; {suggest(name, names)}")
    if entry:
        _print_entry(console, slot, name, entry)
    if path:
        _say(console, f"\nas shipped ({slot}/{name}.yaml):")
        _say(console, path.read_text(encoding="utf-8").rstrip())
    if slot == "attack":
        _say(
            console,
            f"\ntry it: fl-lightning run digits attack={name}; tune it: fl-lightning sweep digits attack={name}",
        )


def _print_entry(console: Console, slot: str, name: str, entry: Entry) -> None:
    from fl_lightning.references import citation

    _say(console, f"{slot} {name}: {entry['summary']}")
    if entry["text"]:
        _say(console, f"\n{entry['text']}")
    if "needs" in entry:
        _say(
            console,
            f"\nneeds {entry['needs']} knowledge: {LEVELS[entry['needs']]}; serves {', '.join(entry['serves'])}",
        )
        _say(console, measured(name))
    if entry["fields"]:
        console.print()
        _print_fields(console, entry["fields"])
    for key in entry["cites"]:
        _say(console, f"\npaper: {citation(key)}")


def _print_fields(console: Console, fields: list[dict[str, str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in ("field", "default"):
        table.add_column(head, no_wrap=True)
    for head in ("range", "searched in", "meaning"):
        table.add_column(head)
    for field in fields:
        table.add_row(*(field[key] for key in ("name", "default", "range", "searched", "meaning")))
    console.print(table)


def measured(attack: str) -> str:
    """What stops an attack, as far as it was measured: the accuracy, or the success, under each rule."""
    found = index()["attack"].get(attack, {}).get("measured")
    if not found:
        return "what stops it: not measured yet; fl-lightning matrix attacks_beyond crosses attacks and servers"
    return f"what stops it, measured on digits: {found}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=not console.is_terminal)
