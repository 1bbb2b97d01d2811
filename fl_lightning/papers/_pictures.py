"""The figures of a paper, drawn from the runs that its claims are judged by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.papers._claims import PaperTable, Printed, TableCell

__all__ = ["Seen", "draw_table"]

Seen = Mapping[tuple[TableCell, str], Sequence[Mapping[int, float]]]
"""(cell, metric) -> for each seed its history: round (from 0) -> value."""


def draw_table(table: PaperTable, seen: Seen) -> Figure:
    """One panel for each metric that a claim reads and each column that is an experiment of its own, one line a row.

    Lines are means over the seeds with 95 % intervals, round by round; figures of a whole run are points. Crosses are printed
    values, at the last round of those that they are read from.

    Args:
        table: the rows and columns.
        seen: what the runs logged; cells that were not run may be missing.
    """
    metrics = list(dict.fromkeys(reading.metric for claim in table.claims() for reading in claim.readings))
    columns = [column for column in table.columns if _runs_of(table, column) == column]
    seen = {(TableCell(cell.row, _runs_of(table, cell.column)), metric): own for (cell, metric), own in seen.items()}
    panels = [(metric, column) for metric in metrics for column in columns]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.2 * down + 0.6), layout="constrained")
    every = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (metric, column) in zip(every, panels, strict=False):
        colors = {row: f"C{number}" for number, row in enumerate(table.rows)}
        for place, row in enumerate(table.rows):
            if of_seeds := seen.get((TableCell(row, column), metric)):
                _line(axes, _spread(of_seeds, metric), row, colors[row], place)
        for row, at, value in _printed(table, metric, column, seen):
            axes.plot(at, value, "x", color=colors[row], markersize=8, markeredgewidth=2)
        axes.set_title(f"{metric}, {column}" if column and len(columns) > 1 else metric, fontsize=9)
        axes.set_xlabel("round" if len(axes.get_xticks()) else "")
        axes.grid(alpha=0.3)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    lines = {label: line for axes in every for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{table.title} (x: printed)" if table.printed else table.title, fontsize=10)
    return figure


def _runs_of(table: PaperTable, column: str) -> str:
    """The first column with the same experiments: others look at other rounds of them."""

    def changes(of: str) -> dict[str, Any]:
        return {slot: change for slot, change in table.columns[of].items() if slot != "over"}

    return next(first for first in table.columns if changes(first) == changes(column))


def _spread(of_seeds: Sequence[Mapping[int, float]], metric: str) -> dict[int, Interval]:
    """Round -> mean and interval of a metric over the seeds that have it."""
    rounds = sorted(set.union(*(set(history) for history in of_seeds)))
    return {at: interval([history[at] for history in of_seeds if at in history], bounds(metric)) for at in rounds}


def _line(axes: Axes, spread: Mapping[int, Interval], label: str, color: str, place: int) -> None:
    means = [one.mean for one in spread.values()]
    if len(spread) == 1:
        reach = np.nan_to_num(np.array([one.reach for one in spread.values()]).T)
        axes.errorbar([place], means, yerr=reach, fmt="o", color=color, label=label, capsize=3)
        axes.set_xticks([])
    else:
        ends = [at + 1 for at in spread]
        low, high = [one.low for one in spread.values()], [one.high for one in spread.values()]
        axes.plot(ends, means, color=color, label=label)
        axes.fill_between(ends, low, high, color=color, alpha=0.15, linewidth=0)


def _printed(table: PaperTable, metric: str, column: str, seen: Seen) -> list[tuple[str, float, float]]:
    """(row, where, printed value) of the panel's rows."""
    marks = []
    for claim in table.claims():
        (cell, reading), rule = (claim.cells[0], claim.readings[0]), claim.rule
        if not isinstance(rule, Printed) or reading.metric != metric or _runs_of(table, cell.column) != column:
            continue
        histories = seen.get((TableCell(cell.row, column), metric)) or ()
        rounds = sorted({at for history in histories for at in history})
        if not rounds or claim.printed is None:
            continue
        match reading.over:
            case int() as at:
                where = float(at)
            case (_, int() as stop):
                where = float(stop)
            case _:
                where = rounds[-1] + 1.0 if len(rounds) > 1 else float(list(table.rows).index(cell.row))
        marks.append((cell.row, where, claim.printed))
    return marks
