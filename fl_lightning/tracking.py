"""Everything MLflow: runs, metrics, artifacts and the model registry.

The embedded store is `sqlite:///mlruns/mlflow.db` with artifacts beside it; `MLFLOW_TRACKING_URI` names any server.
"""

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Without these a server that went away is retried for minutes inside MLflow; the journal retries anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
logging.getLogger("alembic").setLevel(logging.WARNING)

import mlflow  # noqa: E402, TID251
import mlflow.pytorch  # noqa: E402, TID251
import torch  # noqa: E402
import yaml  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from mlflow import MlflowClient  # noqa: E402, TID251
from mlflow.entities import Metric, Param, Run  # noqa: E402, TID251
from mlflow.exceptions import MlflowException  # noqa: E402, TID251
from mlflow.models import infer_signature  # noqa: E402, TID251
from safetensors.torch import load_file, save_file  # noqa: E402

from fl_lightning.config import Experiment, dump, load  # noqa: E402
from fl_lightning.federation import Federation, RoundReport  # noqa: E402
from fl_lightning.journal import Entry, Journal  # noqa: E402
from fl_lightning.metrics import Interval, curves  # noqa: E402
from fl_lightning.partition import plot as plot_partition  # noqa: E402
from fl_lightning.paths import runs_folder  # noqa: E402
from fl_lightning.registry import ConfigError  # noqa: E402

__all__ = ["Tracker", "client", "create_run", "end_run", "flatten", "registered_name", "tracking_uri"]

logging.getLogger("mlflow").setLevel(logging.ERROR)

PATIENCE_SECONDS = 30.0
"""How long the end of a run waits for a tracking server that is gone before it leaves the metrics on disk."""


ROUNDS = "rounds"
"""Where a run keeps the models of single rounds."""


def kept_rounds(store: MlflowClient, run_id: str) -> dict[int, dict[str, torch.Tensor]]:
    """Weights of the global model by round, for the rounds that a run has kept."""
    files = sorted(file.path for file in store.list_artifacts(run_id, ROUNDS))
    return {int(Path(file).stem): load_file(store.download_artifacts(run_id, file)) for file in files}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_folder() / 'mlflow.db'}"


def client() -> MlflowClient:
    """A client of the tracking store.

    Raises:
        ConfigError: the folder of the embedded store cannot be written.
    """
    uri = tracking_uri()
    if uri.startswith("sqlite:"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = (
                f"cannot write to {folder} ({error.strerror}); set FL_LIGHTNING_RUNS to a folder that can be written"
            )
            raise ConfigError(reason) from None
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri)


def experiment_id(store: MlflowClient, name: str) -> str:
    """Id of an MLflow experiment, created on first use.

    Raises:
        ConfigError: the tracking server does not answer, or the experiment was deleted.
    """
    location = None
    if tracking_uri().startswith("sqlite:"):
        location = (runs_folder() / "artifacts").as_uri()
    try:
        found = store.get_experiment_by_name(name)
        if found is None:
            return str(store.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        found = store.get_experiment_by_name(name) if "RESOURCE_ALREADY_EXISTS" in str(error) else None
        if found is None:
            raise ConfigError(f"no answer from MLflow at {tracking_uri()}: {str(error).splitlines()[0]}") from None
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"MLflow experiment {name!r} was deleted; restore it or choose another", "tracking.experiment"
        )
    return str(found.experiment_id)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def registered_name(experiment: Experiment) -> str:
    """`<data>-<model>-<attack>-vs-<aggregator>`."""
    attack = experiment.attack.name if experiment.attack else "clean"
    return f"{experiment.data.name}-{experiment.model.name}-{attack}-vs-{experiment.aggregator.name}"


def run_name(experiment: Experiment) -> str:
    """What the MLflow UI shows: attack, server and seed."""
    attack = experiment.attack.name if experiment.attack else "no attack"
    server = " + ".join([*experiment.defenses, experiment.aggregator.name])
    return f"{attack} vs {server}, seed {experiment.seed}"


def create_run(
    store: MlflowClient, experiment: Experiment, name: str, kind: str, parent: str | None = None, **tags: str
) -> str:
    """A new MLflow run with the resolved configuration as parameters and artifact; returns its id."""
    labels = {
        "fl.kind": kind,
        "fl.attack": experiment.attack.name if experiment.attack else "none",
        "fl.objective": experiment.attack.objective.name if experiment.attack else "none",
        "fl.aggregator": experiment.aggregator.name,
        "fl.defenses": ",".join(experiment.defenses) or "none",
        "fl.data": experiment.data.name,
        "fl.model": experiment.model.name,
        "fl.seed": str(experiment.seed),
        "fl.config": experiment.digest(),
        "fl.paper": experiment.paper or "none",
        "mlflow.source.git.commit": git_revision(),
        "mlflow.user": os.environ.get("USER", "unknown"),
        "mlflow.note.content": f"```yaml\n{dump(experiment)}```",
        **tags,
    }
    if parent:
        labels["mlflow.parentRunId"] = parent
    run_id = store.create_run(
        experiment_id(store, experiment.tracking.experiment), run_name=name, tags=labels
    ).info.run_id
    params = [Param(path, str(value)[:6000]) for path, value in flatten(experiment.to_dict()).items()]
    for start in range(0, len(params), 100):
        store.log_batch(run_id, params=params[start : start + 100])
    store.log_text(run_id, dump(experiment), "config.yaml")
    store.log_text(run_id, json.dumps(environment(), indent=1), "environment.json")
    return str(run_id)


def end_run(store: MlflowClient, run_id: str, status: str, reason: str | None = None) -> None:
    """Set the final status; a reason becomes a tag."""
    if reason:
        store.set_tag(run_id, "fl.stopped", reason)
    store.set_terminated(run_id, status)


def find_run(store: MlflowClient, run_id: str) -> Run:
    """An MLflow run.

    Raises:
        ConfigError: there is none with this id.
    """
    try:
        return store.get_run(run_id)
    except MlflowException:
        raise ConfigError(f"no run {run_id!r} in {tracking_uri()}") from None


def last_step(store: MlflowClient, run_id: str) -> int:
    """The last round that a run has logged, -1 when there is none."""
    return max((metric.step for metric in store.get_metric_history(run_id, "time/round")), default=-1)


def children(store: MlflowClient, run_id: str) -> dict[int, str]:
    """Runs under a parent by seed; the oldest where a seed was started twice."""
    return {int(run.data.tags["fl.seed"]): run.info.run_id for run in reversed(_nested(store, run_id))}


def named_children(store: MlflowClient, run_id: str) -> dict[tuple[str, int], str]:
    """Runs under a parent by name of the experiment and seed; the latest where one was started twice."""
    return {
        (run.data.tags["fl.experiment"], int(run.data.tags["fl.seed"])): run.info.run_id
        for run in _nested(store, run_id)
    }


def _nested(store: MlflowClient, run_id: str, also: str = "") -> list[Run]:
    """Runs under a parent that fit a query, the oldest first."""
    parent = find_run(store, run_id)
    query = f"tags.`mlflow.parentRunId` = '{run_id}'{also}"
    return list(
        store.search_runs([parent.info.experiment_id], query, order_by=["attributes.start_time ASC"], max_results=50000)
    )


def finished(store: MlflowClient, experiment: str) -> dict[str, str]:
    """Finished cells of campaigns in an MLflow experiment: fingerprint -> run.

    The fingerprint is that of the recorded configuration as it reads today, so that a field that came later does not hide a run.
    """
    found = store.search_runs(
        [experiment_id(store, experiment)],
        "tags.`fl.kind` = 'cell' AND attributes.status = 'FINISHED'",
        max_results=50000,
    )
    known = {}
    for run in reversed(found):
        note = run.data.tags.get("mlflow.note.content", "").removeprefix("```yaml\n").removesuffix("```")
        with suppress(ConfigError, yaml.YAMLError):  # a setting that is gone, a note that somebody changed
            known[load(yaml.load(note, getattr(yaml, "CSafeLoader", yaml.SafeLoader))).fingerprint()] = run.info.run_id
    return known


def history(store: MlflowClient, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run: round -> value."""
    return {point.step: point.value for point in store.get_metric_history(run_id, metric)}


def find_tagged(store: MlflowClient, experiment: str, tag: str, value: str) -> str | None:
    """The oldest run of an MLflow experiment that carries a tag, or None."""
    query = f"tags.`{tag}` = '{value}'"
    found = store.search_runs(
        [experiment_id(store, experiment)], query, order_by=["attributes.start_time ASC"], max_results=1
    )
    return str(found[0].info.run_id) if found else None


def end_children(run_id: str, status: str, reason: str) -> None:
    """End every run below that is still RUNNING."""
    store = client()
    for run in _nested(store, run_id, " AND attributes.status = 'RUNNING'"):
        end_children(run.info.run_id, status, reason)
        end_run(store, run.info.run_id, status, reason)


def log_picture(store: MlflowClient, run_id: str, figure: Figure, name: str) -> None:
    """A picture as an artifact; the figure is closed."""
    store.log_figure(run_id, figure, name, save_kwargs={"dpi": 120, "bbox_inches": "tight"})
    pyplot.close(figure)


def log_summary(store: MlflowClient, run_id: str, spread: Mapping[str, Interval]) -> None:
    """Means of several seeds as metrics of their parent, and the intervals as a table."""
    now = int(time.time() * 1000)
    store.log_batch(run_id, metrics=[Metric(name, one.mean, now, 0) for name, one in spread.items()])
    rows = "".join(f"| {name} | {one} |\n" for name, one in spread.items())
    store.log_text(run_id, f"| metric | mean and 95 % interval |\n|---|---|\n{rows}", "summary.md")


def git_revision() -> str:
    """Revision of the source, with `+` when it has local changes; `unknown` outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> dict[str, str]:
    """What the figures were made with."""
    packages = ("fl-lightning", "torch", "torchvision", "lightning", "torchmetrics", "mlflow", "optuna", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        **{package: version(package) for package in packages},
    }


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
            self._save_weights(federation, network, self.folder / ROUNDS / f"{report.round:05d}.safetensors")

    def finish(self, federation: Federation) -> tuple[str | None, str | None]:
        """Deliver everything, log the models, register.

        Returns:
            The URI of the final model, and `name/version` of the registered one (each None where there is none).

        Raises:
            TrackingGoneError: the tracking server does not answer; everything is on disk for a later resume.
        """
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
        uri = self._log_model(federation, state.global_D, "final", state.round - 1, figures)
        best = state.strongest
        if best and best["round"] != state.round - 1:
            self._log_model(federation, best["model"], "most_successful_round", best["round"], best["metrics"])
        registered = None
        if not state.stopped and self.experiment.attack and self.experiment.tracking.register != "never":
            registered = self._register(federation, uri, figures)
        self.store.set_tag(self.run_id, "fl.model_uri", uri)
        if registered:
            self.store.set_tag(self.run_id, "fl.registered_model", registered)
        end_run(self.store, self.run_id, "FINISHED", state.stopped)
        return uri, registered

    def _register(self, federation: Federation, uri: str, figures: Mapping[str, float]) -> str | None:
        """Register the poisoned model, and the clean one of its twin."""
        from fl_lightning.model_registry import register  # builds on this module

        clean_uri, clean_figures = None, None
        if federation.paired:
            twin = federation.paired.state
            clean_figures = {name: value for metrics in twin.history for name, value in metrics.items()}
            clean_uri = self._log_model(federation, twin.global_D, "clean_twin", twin.round - 1, clean_figures)
        return register(self.store, self.experiment, self.run_id, uri, figures, clean_uri, clean_figures)

    def abandon(self, status: str, reason: str) -> None:
        """End a run that did not come to its end; what was measured so far is delivered if that can be done quickly."""
        left = self.journal.close(patience=5.0)
        if not left:
            end_run(self.store, self.run_id, status, reason[:500])

    def _picture(self, figure: Figure, name: str) -> None:
        log_picture(self.store, self.run_id, figure, name)

    def _log_model(
        self, federation: Federation, theta_D: torch.Tensor, name: str, step: int, figures: Mapping[str, float]
    ) -> str:
        """Log a model in eval mode (MLflow's format) and its weights (safetensors); returns the model's URI."""
        network = federation.bench.flat.load_(theta_D).eval()
        example = federation.data.test.x[:2]
        with torch.inference_mode():
            scores = network(example)
        with active_run(self.run_id):
            info = mlflow.pytorch.log_model(
                network.cpu(),
                name=name,
                step=step,
                signature=infer_signature(example.cpu().numpy(), scores.cpu().numpy()),
                input_example=example.cpu().numpy(),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
                tags={
                    key.replace("/", "."): str(value) for key, value in figures.items() if not key.startswith("time/")
                },
            )
        network.to(federation.bench.trainer.device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.safetensors"
            self._save_weights(federation, network, path)
            self.store.log_artifact(self.run_id, str(path), "weights")
        return str(info.model_uri)

    def _save_weights(self, federation: Federation, network: torch.nn.Module, path: Path) -> None:
        """Save the weights as safetensors, with what is needed to build the network for them."""
        weights = {key: part.cpu().contiguous().clone() for key, part in network.state_dict().items()}
        about = {"config": dump(self.experiment), "classes": str(federation.data.classes)}
        about["shape"] = ",".join(map(str, federation.data.shape))
        save_file(weights, path, metadata=about)


class TrackingGoneError(ConnectionError):
    """The tracking server did not come back before the end of a run; nothing is lost."""

    def __init__(self, run_id: str, rounds: int, folder: Path, cause: Exception | None):
        self.run_id = run_id
        super().__init__(
            f"MLflow at {tracking_uri()} does not answer ({cause}); {rounds} rounds of metrics are kept in {folder}. "
            f"Deliver them with: fl-lightning run --resume {run_id}"
        )


@contextmanager
def active_run(run_id: str) -> Iterator[Run]:
    """The run as MLflow's active run, left RUNNING."""
    with mlflow.start_run(run_id=run_id) as run:
        yield run
    MlflowClient().update_run(run_id, status="RUNNING")
