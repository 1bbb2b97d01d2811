"""`fl-lightning reproduce`: the papers' tables run again, their claims judged, and records drawn and checked."""

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from fl_lightning.papers import PaperTable

__all__ = ["reproduce"]


def reproduce(options: argparse.Namespace) -> int:
    """Run what is not recorded and judge every claim, or list the tables, or check records."""
    from fl_lightning.cli._tables import wide_console
    from fl_lightning.papers import check_markers, find_tables

    if options.write:
        check_markers(options.write)  # before hours are spent
    console = wide_console()
    tables = find_tables([] if options.tables == ["all"] else options.tables)
    if options.check:
        return _check(options, tables, console)
    _list(tables, console)
    if not options.tables:
        console.print("run one: fl-lightning reproduce PAPER[:TABLE]; all quick ones: fl-lightning reproduce all")
        return 0
    return _run(options, {name: one for name, one in tables.items() if options.size in one.sizes}, console)


def _list(tables: "Mapping[str, PaperTable]", console: "Console") -> None:
    from rich.table import Table

    from fl_lightning.papers import SIZES

    sizes = SIZES[::-1]
    listing = Table("table", "claims", *(f"{size}, min" for size in sizes), "what it shows", box=None)
    for name, one in tables.items():
        minutes = [f"{one.sizes[size].minutes:g}" if size in one.sizes else "-" for size in sizes]
        listing.add_row(name, str(len(list(one.claims()))), *minutes, one.title)
    console.print(listing)


def _run(options: argparse.Namespace, tables: "Mapping[str, PaperTable]", console: "Console") -> int:
    from rich.table import Table

    from fl_lightning.cli._progress import CampaignProgress, silent
    from fl_lightning.errors import ConfigError
    from fl_lightning.inputs import strict_json
    from fl_lightning.papers import plain, reproduce, write_verdicts
    from fl_lightning.tracking import look_closer

    if not tables:
        raise ConfigError(f"none of these tables has a size {options.size}", "--size")
    begin, title = time.perf_counter(), f"reproduce {' '.join(options.tables)}"
    outcome = reproduce(
        tables,
        options.size,
        options.jobs,
        options.fast,
        silent if options.quiet else CampaignProgress(title),
        tell=None if options.fast else lambda line: console.print(line, soft_wrap=True, highlight=False),
    )
    table = Table("claim", "", "printed", "measured", "verdict", "p, adjusted", "size", box=None)
    for row in outcome.rows():
        table.add_row(*row)
    console.print(table)
    for failure in outcome.failures:
        console.print(f"failed: {failure}", soft_wrap=True, highlight=False)
    console.print(", ".join(f"{count} {name}" for name, count in outcome.counts().items() if count))
    minutes = (time.perf_counter() - begin) / 60
    if options.write:
        write_verdicts(outcome, options.write)
    where = f"{minutes:.1f} minutes; run {outcome.run_id}\n{look_closer(outcome.run_id)}"
    console.print(where, soft_wrap=True, highlight=False)
    if options.json:
        print(strict_json({"run_id": outcome.run_id, "counts": outcome.counts(), "claims": plain(outcome)}))
    return 1 if outcome.failures else 0


def _check(options: argparse.Namespace, tables: "Mapping[str, PaperTable]", console: "Console") -> int:
    from fl_lightning.papers import Records, check
    from fl_lightning.paths import results_folder

    result = check(tables, options.check, Records(results_folder()), options.minutes, options.seed)
    for line in result.lines():
        console.print(line, soft_wrap=True, highlight=False)
    return 0 if result.ok else 1
