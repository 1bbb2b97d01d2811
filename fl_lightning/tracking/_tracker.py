"""The observer that keeps a run in MLflow."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from matplotlib.figure import Figure
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.metrics import curves
from fl_lightning.partition import plot as plot_partition
from fl_lightning.paths import runs_folder
from fl_lightning.tracking._embedded import StoreError
from fl_lightning.tracking._inputs import log_data
from fl_lightning.tracking._journal import Entry, Journal
from fl_lightning.tracking._models import ROUNDS, Snapshot, log_model, save_weights
from fl_lightning.tracking._pages import HEADLINES, figures_in_words
from fl_lightning.tracking._registered import Logged, register
from fl_lightning.tracking._store import client, describe, end_early, end_run, log_picture, reopen, tracking_uri
from fl_lightning.tracking._system import Load

PATIENCE_SECONDS = 30.0
"""How long the end of a run waits for a tracking server that is gone before it leaves the metrics on disk."""


class Tracker:
    """An observer that keeps a run in MLflow.

    Args:
        experiment: the configuration.
        run_id: an existing run to continue.
        folder: where the journal lies until everything is delivered.
    """

    def __init__(self, experiment: Experiment, run_id: str, folder: Path):
        self.experiment = experiment
        self.run_id = run_id
        self.store = client()
        self.folder = folder
        self.journal = Journal(folder / "journal.jsonl", self._deliver)
        self.load = Load(self.store, run_id) if experiment.tracking.system else None

    def _deliver(self, entries: list[Entry]) -> None:
        metrics = [
            Metric(name, value, entry.timestamp, entry.step)
            for entry in entries
            for name, value in with_headlines(entry.metrics).items()
            if value == value
        ]
        # MLflow takes at most 1,000 metrics at once; whole rounds stay together well below that.
        for start in range(0, len(metrics), 900):
            self.store.log_batch(self.run_id, metrics=metrics[start : start + 900])

    def start(self, federation: Federation) -> None:
        """Log who holds which labels, and the figures of rounds that were run elsewhere."""
        fresh = self.journal.last_step < 0
        if self.load:
            self.load.start()
        for round, figures in enumerate(federation.state.history):
            self.journal.append(round, figures)
        if fresh:
            with suppress(MlflowException, OSError):  # a server that is away for the moment costs no run
                log_data(self.store, self.run_id, self.experiment, federation.data)
        if fresh and self.experiment.tracking.models:
            picture = plot_partition(federation.assignment, federation.data.train.y.cpu(), federation.data.classes)
            self._picture(picture, "partition.png")

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Log the figures of a round, in one batch, in the background; keep its model where that is asked for.

        Nothing here waits for the tracking server: models lie beside the journal until the end of the run.
        """
        self.journal.append(report.round, report.metrics)
        if report.round in self.experiment.tracking.keep_rounds:
            network = federation.bench.flat.load_(federation.state.global_D)
            (self.folder / ROUNDS).mkdir(exist_ok=True)
            save_weights(federation, network, self.folder / ROUNDS / f"{report.round:05d}.safetensors")

    def finish(self, federation: Federation) -> tuple[str | None, str | None]:
        """Deliver everything, log the models, register.

        Returns:
            The URI of the final model, and `name/version` of the registered one (each None where there is none).

        Raises:
            TrackingGoneError: the tracking server does not answer; everything is on disk for a later resume.
        """
        if self.load:
            self.load.stop()
        with suppress(MlflowException, ConfigError, StoreError):
            reopen(self.store, self.run_id)  # somebody has deleted it in the meantime: figures are taken again
        left = self.journal.close(PATIENCE_SECONDS)
        if left:
            raise TrackingGoneError(self.run_id, left, self.folder, self.journal.error)
        try:
            return self._hand_over(federation)
        except (MlflowException, OSError) as error:
            raise TrackingGoneError(self.run_id, federation.state.round, self.folder, error) from error

    def _hand_over(self, federation: Federation) -> tuple[str | None, str | None]:
        """Log kept, final and most successful models, register, and end the run."""
        if (self.folder / ROUNDS).is_dir():
            self.store.log_artifacts(self.run_id, str(self.folder / ROUNDS), ROUNDS)
        state = federation.state
        figures = {name: value for metrics in state.history for name, value in metrics.items()}
        models = self.experiment.tracking.models
        describe(self.store, self.run_id, self.experiment, figures_in_words(figures))
        if models:
            self._picture(curves(state.history), "curves.png")
        if state.given_up:  # nobody asks for its model
            end_early(self.store, self.run_id, state.stopped)
            return None, None
        if state.reached:
            self.store.set_tag(self.run_id, "fl.reached", state.reached)
        if not models:
            end_run(self.store, self.run_id, "FINISHED", state.stopped)
            return None, None
        final = Snapshot("final", state.global_D, state.round - 1, figures)
        uri = log_model(self.store, self.run_id, federation, final)
        best = state.strongest
        if best and best["round"] != state.round - 1:
            strongest = Snapshot("most_successful_round", best["model"], best["round"], best["metrics"])
            log_model(self.store, self.run_id, federation, strongest)
        registered = None
        kind = self.store.get_run(self.run_id).data.tags.get("fl.kind", "run")
        if not state.stopped and registers(self.experiment, kind):
            registered = self._register(federation, Logged(uri, figures))
        self.store.set_tag(self.run_id, "fl.model_uri", uri)
        if registered:
            self.store.set_tag(self.run_id, "fl.registered_model", registered)
        end_run(self.store, self.run_id, "FINISHED", state.stopped)
        return uri, registered

    def _register(self, federation: Federation, poisoned: Logged) -> str | None:
        """Register the poisoned model, and the clean one of its twin."""
        clean = None
        if federation.paired:
            twin = federation.paired.state
            figures = {name: value for metrics in twin.history for name, value in metrics.items()}
            snapshot = Snapshot("clean_twin", twin.global_D, twin.round - 1, figures)
            clean = Logged(log_model(self.store, self.run_id, federation, snapshot), figures)
        inputs = (federation.data.shape, federation.data.classes)
        return register(self.store, self.experiment, self.run_id, poisoned, clean, inputs)

    def abandon(self, status: str, reason: str, trace: str | None = None) -> bool:
        """End a run that did not come to its end; what was measured so far is delivered if that can be done quickly.

        Returns:
            Whether the traceback, where there is one, is among the run's artifacts now.
        """
        if self.load:
            self.load.stop()
        if self.journal.close(patience=5.0):
            return False
        try:
            end_run(self.store, self.run_id, status, reason[:500])
            if trace:
                self.store.log_text(self.run_id, trace, "error.txt")
        except (MlflowException, OSError):  # what ended the run is told, not that this could not be written down
            return False
        return trace is not None

    def _picture(self, figure: Figure, name: str) -> None:
        log_picture(self.store, self.run_id, figure, name)


def registers(experiment: Experiment, kind: str) -> bool:
    """Whether a run of a kind may put its model into the registry."""
    wish = experiment.tracking.register
    if wish == "auto":
        return kind == "run" and experiment.attack is not None and not experiment.fast
    return wish != "never" and experiment.attack is not None


def with_headlines(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of a round, those that matter most also under a short name, for columns and the order of runs.

    Example:
        >>> with_headlines({"attack/success": 0.9, "attack/active": 1.0})
        {'attack/success': 0.9, 'attack/active': 1.0, 'success': 0.9}
    """
    return {**figures, **{short: figures[name] for name, short in HEADLINES.items() if name in figures}}


class TrackingGoneError(ConnectionError):
    """The tracking server did not come back before the end of a run, or has no room; nothing is lost."""

    def __init__(self, run_id: str, rounds: int, folder: Path, cause: Exception | str | None):
        self.run_id = run_id
        what = f"has no room left where {runs_folder()} lies" if disk_full(cause) else "does not answer"
        first = ""
        if any(words in str(cause) for words in ("was deleted while", f"id={run_id} not found")):
            what, first = "has not this run any more", "Put its database back, or run config.yaml there anew; else: "
        self._made_of = (run_id, rounds, folder, str(cause))
        cause = next(iter(str(cause).splitlines()), "")
        super().__init__(
            f"MLflow at {tracking_uri()} {what} ({cause}); {rounds} rounds of metrics are kept in {folder}. "
            f"{first}Deliver them with: fl-lightning run --resume {run_id}"
        )

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, Path, str]]:
        return type(self), self._made_of  # so that it reaches the parent of a worker process as what it is


def disk_full(error: BaseException | str | None) -> bool:
    """Whether a full disk is what an error, or its text, comes from."""
    while isinstance(error, BaseException):
        if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return error is not None and ("disk is full" in error or os.strerror(errno.ENOSPC) in error)
