"""The command `fl-lightning compare`: what differs between runs, and their figures side by side."""

import argparse

from rich.table import Table

from fl_lightning import tracking
from fl_lightning.cli._console import wide_console
from fl_lightning.cli._tables import FIRST
from fl_lightning.errors import ConfigError
from fl_lightning.inputs import strict_json
from fl_lightning.runs._compare import differences, find

__all__ = ["compare"]


def compare(options: argparse.Namespace) -> int:
    """Print two tables; returns the exit code.

    Raises:
        ConfigError: fewer than two runs, or one that is not there.
    """
    if len(options.runs) < 2:
        raise ConfigError("name at least two runs; `fl-lightning ui` shows their ids")
    store = tracking.client(only_read=True)
    runs = [find(store, word) for word in options.runs]
    differ = differences(runs)
    names = [name for name in FIRST if any(name in run.data.metrics for run in runs)]
    if options.all or not names:
        names += sorted({name for run in runs for name in run.data.metrics} - set(names))
    console, heads = wide_console(), [run.info.run_id[:8] for run in runs]
    about = Table("", *heads, box=None, title="runs", title_justify="left")
    for row, key in (
        ("name", "mlflow.runName"),
        ("kind", "fl.kind"),
        ("stopped", "fl.stopped"),
        ("reached", "fl.reached"),
    ):
        cells = [run.data.tags.get(key, "") for run in runs]
        if any(cells):
            about.add_row(row, *map(_safe, cells))
    about.add_row("status", *(run.info.status for run in runs))
    console.print(about)
    title = "what differs" if differ else "their configurations are the same"
    table = Table("path", *heads, box=None, title=title, title_justify="left")
    for path, values in differ.items():
        table.add_row(path, *(_safe("-" if value is None else value) for value in values))
    console.print(table)
    figures = Table(
        "figure", *heads, box=None, title="figures, of the last round or the mean of seeds", title_justify="left"
    )
    for name in names:
        figures.add_row(name, *(_number(run.data.metrics.get(name)) for run in runs))
    console.print(figures)
    if options.json:
        plain = {run.info.run_id: dict(run.data.metrics) for run in runs}
        print(strict_json({"differences": differ, "figures": plain}))
    return 0


def _safe(text: str) -> str:
    return text.replace("[", "\\[")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
