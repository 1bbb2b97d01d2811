"""Progress of a run, a search, a campaign: a bar in a terminal, plain lines elsewhere.

In a terminal of 80 columns name, bar, n of N and the time left stand in one line, the figures in the next.
"""

import atexit
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from fl_lightning.cli._console import duration
from fl_lightning.federation import Federation, RoundReport

__all__ = ["CampaignProgress", "RoundProgress", "SearchProgress", "figures"]

SHOWN = (
    ("attack/success", "attack success"),
    ("global/accuracy", "accuracy"),
    ("global/normalized_cost", "cost"),
    ("attack/selected", "selected"),
)
QUIET_SECONDS = 2.0
TITLE_WIDTH = 28


def figures(metrics: dict[str, float]) -> str:
    """The figures that a person wants to see, in a few words; success and accuracy first."""
    return "  ".join(f"{label} {metrics[name]:.3f}" for name, label in SHOWN if name in metrics)


class Bar(Progress):
    """One bar, and a line of figures below it; both fit any width."""

    def __init__(self, console: Console, title: str, total: int, done: int):
        self.note = ""
        super().__init__(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="crop", max_width=TITLE_WIDTH),
            ),
            BarColumn(bar_width=None, table_column=Column(min_width=8, ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True, min_width=13, justify="right")),
            console=console,
            expand=True,
        )
        self.only = self.add_task(title, total=total, completed=done, left="")
        self.start()
        atexit.register(self.stop)  # however the program ends, the cursor is there again

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the figures."""
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(f"  {self.note}", no_wrap=True, overflow="crop")

    def show(self, done: float, left: float | None, note: str) -> None:
        """Move to `done`; `left` seconds are left, None: not known yet."""
        self.note = note
        self.update(self.only, completed=done, left="" if left is None else f"{duration(left)} left")


class RoundProgress:
    """An observer that shows rounds, attack success, accuracy and the time left on stderr."""

    def __init__(self, title: str):
        self.title = title
        self.console = Console(file=sys.stderr)
        self.bar: Bar | None = None
        self.begin = self.last_line = 0.0
        self.first = self.done = 0
        self.trained = 0.0
        self.note = ""

    def start(self, federation: Federation) -> None:
        """Show the bar."""
        self.begin, self.first = time.monotonic(), federation.state.round
        self.done, self.trained = self.first, 0.0
        if not self.console.is_terminal:
            return
        experiment = federation.experiment
        clients = max(1, experiment.participation.per_round(len(federation.assignment)))
        self.bar = bar = Bar(self.console, self.title, experiment.planned_rounds, self.first)

        def watch(n_clients: int) -> None:
            self.trained = min(self.trained + n_clients / clients, 0.99)  # a twin trains as many again
            bar.show(self.done + self.trained, self._left(experiment.planned_rounds), self.note)

        federation.bench.trainer.watch = watch

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Move on by one round."""
        self.done, total = report.round + 1, federation.experiment.planned_rounds
        self.trained, self.note = 0.0, figures(report.metrics) or self.note
        finished = self.done == total or federation.state.over
        if self.bar:
            self.bar.show(self.done, self._left(total), self.note)
            if finished:
                self.bar.stop()
        elif finished or time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            eta = "" if finished else f"  {duration(self._left(total) or 0)} left"
            self.console.print(
                f"{self.title}: round {self.done}/{total}  {figures(report.metrics)}{eta}", soft_wrap=True, markup=False
            )

    def _left(self, total: int) -> float | None:
        new = self.done + self.trained - self.first
        return (time.monotonic() - self.begin) / new * (total - self.done - self.trained) if new else None


class SearchProgress:
    """Shows a search: trials, then the runs that confirm its winner, by one clock that starts with the first trial.

    Args:
        metric: what the search looks for.
        seeds: unseen seeds on which the winner, what is configured, and runners-up are run.
        runners_up: at most how many of them.
    """

    def __init__(self, metric: str, seeds: Sequence[int] = (), runners_up: int = 0):
        self.metric = metric
        self.seeds = seeds
        self.confirming = ["the winner", "what is configured", *(f"runner-up {n + 1}" for n in range(runners_up))]
        self.console = Console(file=sys.stderr)
        self.bar: Bar | None = None
        self.begin: float | None = None
        self.first = self.done = -1
        self.trials = 0
        self.confirmed = 0
        self.note = ""

    @property
    def total(self) -> int:
        """Trials and confirmation runs."""
        return self.trials + len(self.confirming) * len(self.seeds)

    def __call__(self, study: Any, trials: int) -> None:
        """Look at the study again."""
        from fl_lightning.search import feasible

        known = study.get_trials(deepcopy=False)
        finished = [trial for trial in known if trial.state.is_finished()]
        self.trials = trials
        if self.first < 0:
            self.first = len(finished)
        if self.begin is None and any(trial.datetime_start and not trial.state.is_finished() for trial in known):
            self.begin = time.monotonic()  # imports and the start of workers are no part of a trial
        if self.begin is None and len(finished) > self.first:
            last = finished[-1]
            self.begin = time.monotonic() - last.duration.total_seconds() if last.duration else time.monotonic()
        if len(finished) == self.done:
            return
        self.done = len(finished)
        # What was given up or broke a constraint cannot win, whatever it reached.
        values = [trial.values[0] for trial in finished if trial.state.name == "COMPLETE" and feasible(trial)]
        best = max if study.directions[0].name == "MAXIMIZE" else min
        self.note = f"best {self.metric} {best(values):.3f}" if values else ""
        self._show("search", f"search: trial {self.done}/{trials}  {self.note}")

    def watch(self, experiment: Any) -> list[Any]:
        """The observer of one confirmation run; a heading stands before the winner's, and before those of what is configured."""
        number, n = self.confirmed, len(self.seeds)
        if self.begin is None:  # all trials were finished before
            self.begin = time.monotonic()
        who = self.confirming[min(number // n, len(self.confirming) - 1)] if n else "the winner"
        if n and number % n == 0:
            self.console.print(f"confirming: {who}, on {n} seeds that the search never saw", soft_wrap=True)
        return [_Confirmation(self, f"{who}, unseen seed {experiment.seed}")]

    def confirm(self, title: str, note: str) -> None:
        """One more confirmation run has come to its end."""
        self.confirmed += 1
        self._show(f"confirming {title}", f"confirmed: {title}  {note}", note)

    def _show(self, title: str, line: str, note: str | None = None) -> None:
        done = max(self.done, 0) + self.confirmed
        new = done - max(self.first, 0)
        elapsed = time.monotonic() - self.begin if self.begin is not None else 0.0
        left = elapsed / new * (self.total - done) if new and done < self.total else None
        if self.console.is_terminal:
            if self.bar is None:
                self.bar = Bar(self.console, title, self.total, done)
            self.bar.update(self.bar.only, description=title, total=self.total)
            self.bar.show(done, left, self.note if note is None else f"{self.note}  {note}")
            if done >= self.total:
                self.close()
            return
        eta = "" if left is None else f"  {duration(left)} left"
        self.console.print(f"{line}{eta}", soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the bar where it is; whatever ends a search early calls this, too."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class _Confirmation:
    """An observer that tells a search when a confirmation run is done."""

    def __init__(self, search: SearchProgress, title: str):
        self.search = search
        self.title = title

    def start(self, federation: Federation) -> None:
        """Nothing to show yet."""

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Tell, after the last round."""
        if report.round + 1 == federation.experiment.planned_rounds or federation.state.over:
            self.search.confirm(self.title, figures(report.metrics))


def silent(done: int, total: int, what: object) -> None:
    """Show nothing of a campaign."""


class CampaignProgress:
    """Shows how many runs or searches of a campaign are done, and the time left."""

    def __init__(self, title: str):
        self.title = title
        self.console = Console(file=sys.stderr)
        self.bar: Bar | None = None
        self.begin = self.last_line = 0.0

    def __call__(self, done: int, total: int, last: Any) -> None:
        """One line every few seconds; all take about as long. Without a last one, the clock starts."""
        now = time.monotonic()
        if last is None:
            self.begin = self.last_line = now
            self.close()
            if self.console.is_terminal and total:
                self.bar = Bar(self.console, self.title, total, done)
            return
        left = (now - self.begin) / done * (total - done)
        if self.bar is not None:
            self.bar.show(done, left, str(last.name))
            if done >= total:
                self.close()
            return
        if done < total and now - self.last_line < QUIET_SECONDS:
            return
        self.last_line = now
        line = f"{self.title}: {done}/{total} done, {last.name}  {duration(left)} left"
        self.console.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
