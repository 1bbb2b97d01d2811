"""The observer that keeps a run in MLflow."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from matplotlib.figure import Figure
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from fl_lightning.config import REACHED, Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.metrics import curves
from fl_lightning.partition import plot as plot_partition
from fl_lightning.tracking._journal import Entry, Journal
from fl_lightning.tracking._models import ROUNDS, log_model, save_weights
from fl_lightning.tracking._registered import register
from fl_lightning.tracking._store import client, end_run, log_picture, reopen, tracking_uri

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

    def _deliver(self, entries: list[Entry]) -> None:
        metrics = [
            Metric(name, value, entry.timestamp, entry.step)
            for entry in entries
            for name, value in entry.metrics.items()
            if value == value
        ]
        # MLflow takes at most 1,000 metrics at once; whole rounds stay together well below that.
        for start in range(0, len(metrics), 900):
            self.store.log_batch(self.run_id, metrics=metrics[start : start + 900])

    def start(self, federation: Federation) -> None:
        """Log who holds which labels, and the figures of rounds that were run elsewhere."""
        fresh = self.journal.last_step < 0
        for round, figures in enumerate(federation.state.history):
            self.journal.append(round, figures)
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
        with suppress(MlflowException, ConfigError):
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
        if models:
            self._picture(curves(state.history), "curves.png")
        if not models or (state.stopped and state.stopped.startswith("pruned")):  # given up: nobody asks for its model
            end_run(self.store, self.run_id, "FINISHED", state.stopped)
            return None, None
        uri = log_model(self.store, self.run_id, federation, state.global_D, "final", state.round - 1, figures)
        best = state.strongest
        if best and best["round"] != state.round - 1:
            log_model(
                self.store,
                self.run_id,
                federation,
                best["model"],
                "most_successful_round",
                best["round"],
                best["metrics"],
            )
        registered = None
        if (
            (not state.stopped or state.stopped.startswith(REACHED))
            and self.experiment.attack
            and self.experiment.tracking.register != "never"
        ):
            registered = self._register(federation, uri, figures)
        self.store.set_tag(self.run_id, "fl.model_uri", uri)
        if registered:
            self.store.set_tag(self.run_id, "fl.registered_model", registered)
        end_run(self.store, self.run_id, "FINISHED", state.stopped)
        return uri, registered

    def _register(self, federation: Federation, uri: str, figures: Mapping[str, float]) -> str | None:
        """Register the poisoned model, and the clean one of its twin."""
        clean_uri, clean_figures = None, None
        if federation.paired:
            twin = federation.paired.state
            clean_figures = {name: value for metrics in twin.history for name, value in metrics.items()}
            clean_uri = log_model(
                self.store, self.run_id, federation, twin.global_D, "clean_twin", twin.round - 1, clean_figures
            )
        return register(self.store, self.experiment, self.run_id, uri, figures, clean_uri, clean_figures)

    def abandon(self, status: str, reason: str, trace: str | None = None) -> bool:
        """End a run that did not come to its end; what was measured so far is delivered if that can be done quickly.

        Returns:
            Whether the traceback, where there is one, is among the run's artifacts now.
        """
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


class TrackingGoneError(ConnectionError):
    """The tracking server did not come back before the end of a run; nothing is lost."""

    def __init__(self, run_id: str, rounds: int, folder: Path, cause: Exception | None):
        self.run_id = run_id
        super().__init__(
            f"MLflow at {tracking_uri()} does not answer ({cause}); {rounds} rounds of metrics are kept in {folder}. "
            f"Deliver them with: fl-lightning run --resume {run_id}"
        )
