"""The command `fl-lightning models`: list, show, compare, export, analyze."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.markdown import Markdown
from rich.table import Column, Table

from fl_lightning.analysis import analyze
from fl_lightning.cli._tables import wide_console
from fl_lightning.errors import ConfigError
from fl_lightning.tracking import card, compare, export, find, registered_models

__all__ = ["models"]


def models(options: argparse.Namespace) -> int:
    """Run a verb; returns the exit code.

    Raises:
        ConfigError: not the names that the verb needs.
    """
    count, words, verb = VERBS[options.verb]
    if len(options.names) != count:
        raise ConfigError(f"usage: fl-lightning models {options.verb}{words}")
    return verb(options)


def _list(options: argparse.Namespace) -> int:
    versions = registered_models(options.attack, options.aggregator)
    if not versions:
        print("no registered models yet; `fl-lightning sweep mnist_backdoor` makes one")
        return 0
    table = Table(
        Column("model", overflow="fold"),
        "version",
        "alias",
        "attack",
        "success",
        "accuracy",
        "seed",
        Column("run", overflow="fold"),
        box=None,
    )
    for version in versions:
        tags = version.tags
        figures = (tags.get(name, "") for name in ("attack", "attack/success", "global/accuracy", "seed"))
        table.add_row(version.name, str(version.version), ", ".join(version.aliases), *figures, version.run_id)
    wide_console().print(table)
    print(
        "\nload one: fl_lightning.tracking.find('NAME').network; hand one on to plain torch: fl-lightning models export NAME DIR"
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    console = wide_console()
    text = card(find(options.names[0], options.trust))
    console.print(Markdown(text) if console.is_terminal else text, markup=False, soft_wrap=not console.is_terminal)
    return 0


def _compare(options: argparse.Namespace) -> int:
    one, other = (find(name, options.trust) for name in options.names)
    table = Table("", one.title, other.title, "difference", box=None)
    for name in sorted(set(one.figures) | set(other.figures)):
        values = [model.figures.get(name) for model in (one, other)]
        difference = "" if None in values else f"{values[1] - values[0]:+.4g}"  # type: ignore[operator]
        table.add_row(name, *("" if value is None else f"{value:.4g}" for value in values), difference)
    console = wide_console()
    console.print(table)
    layers = Table("layer", "L2 distance", "relative", "cosine", box=None)
    for name, distance, relative, cosine in compare(one, other):
        layers.add_row(name, f"{distance:.4g}", f"{relative:.3f}", f"{cosine:.4f}")
    console.print(layers)
    return 0


def _export(options: argparse.Namespace) -> int:
    for path in export(find(options.names[0], options.trust), Path(options.names[1])):
        print(path)
    return 0


def _analyze(options: argparse.Namespace) -> int:
    out = Path(options.out) if options.out else None
    print(
        analyze(
            options.names[0],
            options.against,
            out,
            lambda title: print(f"done: {title}", file=sys.stderr),
            options.trust,
        )
    )
    return 0


VERBS: dict[str, tuple[int, str, Callable[[argparse.Namespace], int]]] = {
    "list": (0, "", _list),
    "show": (1, " NAME", _show),
    "compare": (2, " A B", _compare),
    "export": (2, " NAME DIR", _export),
    "analyze": (1, " NAME [--against CLEAN] [--out FILE]", _analyze),
}
"""How many names each verb takes, what they are, and what it does."""
