"""What the commands print: figures as tables."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fl_lightning.cli._console import wide_console
from fl_lightning.config import THREAT, Experiment
from fl_lightning.metrics import bounds, interval
from fl_lightning.registry import PluginError, distribution_of, plugins, registry, summary
from fl_lightning.runs import Outcome
from fl_lightning.tracking import look_closer

if TYPE_CHECKING:
    from fl_lightning.search import SweepOutcome  # Optuna takes half a second, and a run needs none

__all__ = ["print_outcome", "print_plugins", "print_sweep", "wide_console"]


def print_plugins(slots: list[str]) -> None:
    """What installed distributions add to each slot, and why a part of it cannot be used."""
    console = wide_console()
    table = Table("slot", "name", "distribution", "class", "state", box=None)
    for slot in slots:
        for name, entries in sorted(plugins(slot).items()):
            try:
                state = summary(registry(slot)[name])
            except PluginError as error:
                state = f"refused: {error}"
            for entry in entries:
                table.add_row(slot, name, distribution_of(entry), entry.value, state)
    if table.row_count:
        console.print(table)
    else:
        console.print("no installed package adds anything: see entry points `fl_lightning.<slot>`", markup=False)


FIRST = (
    "attack/success",
    "global/accuracy",
    "global/normalized_cost",
    "impact/accuracy_drop",
    "attack/selected",
    "time/round",
)
"""What a person asks first."""


def print_outcome(outcome: Outcome, everything: bool = True) -> None:
    """The figures of a run, with intervals where it had several seeds; what a person asks first stands first.

    Args:
        outcome: of a run.
        everything: whether the other figures follow.
    """
    console = wide_console()
    table = Table(
        "metric", "value", box=None, title=f"{outcome.experiment}: {outcome.rounds} rounds", title_justify="left"
    )
    first = [name for name in FIRST if name in outcome.metrics]
    others = sorted(name for name in outcome.metrics if name not in first and not name.startswith("time/"))
    for name in first + others * (everything or not first):
        value = outcome.metrics[name]
        values = [one.metrics[name] for one in outcome.seeds]
        shown = str(interval(values, bounds(name))) if values else f"{value:.4g}"
        table.add_row(name, shown)
    console.print(table)
    if others and first and not everything:
        console.print(f"{len(others)} more figures: --all", highlight=False)
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", soft_wrap=True)
    if outcome.reached:
        console.print(f"ended with what it was to reach: {outcome.reached}", soft_wrap=True)
    if outcome.registered_model:
        console.print(f"registered: {outcome.registered_model}", soft_wrap=True)
    console.print(f"run {outcome.run_id}\n{look_closer(outcome.run_id)}", soft_wrap=True, highlight=False)


def print_sweep(outcome: "SweepOutcome", experiment: Experiment) -> None:
    """The best trials of a search, and what its winner is worth on unseen seeds."""
    from fl_lightning.search import shown

    console = wide_console()
    metrics = experiment.sweep.metrics
    title = "Pareto front" if len(metrics) > 1 else "best trials"
    table = Table("trial", *metrics, "state", "settings", box=None, title=title, title_justify="left")
    granted = {f"attack.{name}" for name in THREAT} - set(experiment.sweep.space)  # the same in every trial
    rows = [row for row in outcome.trials if row["front"]] or outcome.trials[:5]
    for row in rows:
        changed = {path: value for path, value in row["changes"].items() if path not in granted}
        settings = "  ".join(f"{path}={shown(value)}" for path, value in changed.items())
        state = row["state"] if row["feasible"] else "breaks a constraint"
        figures = [shown(value) for value in row["values"] or [""] * len(metrics)]
        table.add_row(str(row["number"]), *figures, state, settings)
    console.print(table)
    if outcome.searched is None:
        console.print("no trial held the constraints; the figures are those of the one that missed them least")
    seeds = len(experiment.sweep.confirm_seeds)
    result = Table("", *metrics, box=None, title=f"{outcome.what} found", title_justify="left")
    if outcome.searched:
        result.add_row("in the search (optimistic)", *(f"{outcome.searched[metric]:.3f}" for metric in metrics))
    result.add_row(f"on {seeds} unseen seeds", *(str(outcome.confirmed[metric]) for metric in metrics))
    result.add_row(f"configured {outcome.what}, same seeds", *(str(outcome.default[metric]) for metric in metrics))
    console.print(result)
    console.print(f"{outcome.verdict} (paired difference in {metrics[0]}: {outcome.gain})", soft_wrap=True)
    _print_runners_up(console, outcome, metrics[0])
    console.print(f"rounds saved by pruning and shared warm-up: {outcome.rounds_saved:.0%}")
    if outcome.registered_model:
        name = outcome.registered_model.rpartition("/")[0]
        console.print(
            f"registered: {outcome.registered_model}; hand it on: fl-lightning models export {name} DIR", soft_wrap=True
        )
    about = f"study {outcome.study}, run {outcome.run_id}\n{look_closer(outcome.run_id)}"
    console.print(about, soft_wrap=True, highlight=False)


def _print_runners_up(console: Console, outcome: "SweepOutcome", metric: str) -> None:
    """Who came second, and how far behind; who was given up, and who was never tried."""
    from fl_lightning.search import shown

    confirmed = [one for one in outcome.runners_up if one.behind]
    if confirmed:
        table = Table("", "trials", f"{metric} in the search", "on the unseen seeds", "behind the winner by", box=None)
        table.title, table.title_justify = "runners-up", "left"
        for one in confirmed:
            table.add_row(one.arm, str(one.trials), shown(one.searched), str(one.confirmed[metric]), str(one.behind))
        console.print(table)
    others = [one for one in outcome.runners_up if one.searched is not None and not one.behind]
    for words, names in (
        ("the others in the search", [f"{one.arm} {shown(one.searched)}" for one in others]),
        ("given up or failed in every trial", [one.arm for one in outcome.runners_up if one.searched is None]),
        ("never tried: sweep.minutes or sweep.trials did not suffice", outcome.untried),
    ):
        if names:
            console.print(f"{words}: {', '.join(names)}", soft_wrap=True, highlight=False)
