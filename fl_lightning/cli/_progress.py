"""Progress of a run: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fl_lightning.federation import Federation, RoundReport

__all__ = ["RoundProgress", "figures"]

SHOWN = (
    ("global/accuracy", "accuracy"),
    ("global/normalized_cost", "cost"),
    ("attack/success", "attack success"),
    ("attack/selected", "selected"),
)
QUIET_SECONDS = 2.0


def figures(metrics: dict[str, float]) -> str:
    """The figures that a person wants to see, in a few words."""
    return "  ".join(f"{label} {metrics[name]:.3f}" for name, label in SHOWN if name in metrics)


class RoundProgress:
    """An observer that shows rounds, clients, accuracy, attack success and the remaining time on stderr."""

    def __init__(self, title: str):
        self.title = title
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.tasks: dict[str, Any] = {}
        self.begin = 0.0
        self.first = 0
        self.last_line = 0.0

    def start(self, federation: Federation) -> None:
        """Show the bar."""
        self.begin, self.first = time.monotonic(), federation.state.round
        if not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console)
        rounds, clients = federation.experiment.planned_rounds, self._clients(federation)
        self.tasks["rounds"] = self.bar.add_task(self.title, total=rounds, completed=self.first, note="")
        self.tasks["clients"] = self.bar.add_task("  clients of this round", total=clients, note="")
        bar, task = self.bar, self.tasks["clients"]
        federation.bench.trainer.watch = lambda n: bar.advance(task, n)
        self.bar.start()

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Move on by one round."""
        done, total = report.round + 1, federation.experiment.planned_rounds
        finished = done == total or bool(federation.state.stopped)
        if self.bar:
            self.bar.update(self.tasks["rounds"], completed=done, note=figures(report.metrics))
            self.bar.reset(self.tasks["clients"], total=self._clients(federation))
            if finished:
                self.bar.stop()
        elif finished or time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            left = (self.last_line - self.begin) / (done - self.first) * (total - done)
            eta = "" if finished else f"  {left:.0f} s left"
            self.console.print(f"{self.title}: round {done}/{total}  {figures(report.metrics)}{eta}", soft_wrap=True)

    @staticmethod
    def _clients(federation: Federation) -> int:
        experiment = federation.experiment
        return experiment.participation.per_round(len(federation.assignment))


class SearchProgress:
    """Shows a search: trials done, best value so far, remaining time."""

    def __init__(self, metric: str):
        self.metric = metric
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task: Any = None
        self.begin = time.monotonic()
        self.first = -1
        self.done = -1

    def __call__(self, study: Any, trials: int) -> None:
        """Look at the study again."""
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if self.first < 0:
            self.first = len(finished)
        if len(finished) == self.done:
            return
        self.done = len(finished)
        values = [trial.values[0] for trial in finished if trial.values]
        best = max if study.directions[0].name == "MAXIMIZE" else min
        note = f"best {self.metric} {best(values):.3f}" if values else ""
        if self.console.is_terminal:
            if self.bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                self.bar = Progress(
                    *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console
                )
                self.task = self.bar.add_task("search", total=trials, completed=self.first, note="")
                self.bar.start()
            self.bar.update(self.task, completed=self.done, note=note)
            if self.done >= trials:
                self.bar.stop()
            return
        new = self.done - self.first
        left = f"  {(time.monotonic() - self.begin) / new * (trials - self.done):.0f} s left" if new else ""
        self.console.print(f"search: trial {self.done}/{trials}  {note}{left}", soft_wrap=True)


class CampaignProgress:
    """Shows how many runs or searches of a campaign are done, and the remaining time."""

    def __init__(self, title: str):
        self.title = title
        self.console = Console(file=sys.stderr)
        self.begin = self.last_line = 0.0

    def __call__(self, done: int, total: int, last: Any) -> None:
        """One line every few seconds; all take about as long. Without a last one, the clock starts."""
        now = time.monotonic()
        if last is None:
            self.begin = self.last_line = now
            return
        if done < total and now - self.last_line < QUIET_SECONDS:
            return
        self.last_line = now
        left = (now - self.begin) / done * (total - done)
        self.console.print(f"{self.title}: {done}/{total} done, {last.name}  {left:.0f} s left", soft_wrap=True)
