"""Everything MLflow: runs, metrics, artifacts and the model registry.

The embedded store is `sqlite:///mlruns/mlflow.db` with artifacts beside it; `MLFLOW_TRACKING_URI` names any server.
"""

import getpass
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _use_tracking_uri

from fl_lightning.config import Experiment, dump, load_text
from fl_lightning.metrics import Interval
from fl_lightning.paths import SERVER, embedded, runs_folder, tracking_server
from fl_lightning.registry import ConfigError, flatten, foreign
from fl_lightning.tracking._embedded import StoreError, database_of, opened, unwritable
from fl_lightning.tracking._environment import command, environment, git_revision
from fl_lightning.tracking._pages import HEADLINES, NOTE, described, experiment_tags, note, run_link
from fl_lightning.tracking._system import check_system

CONFIG = "config.yaml"

ENDED_EARLY = "fl.ended_early"
"""Tag of a run that a search gave up."""
"""Where a run records its configuration."""

PAGE = 5000
"""Runs that are asked for at once."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the embedded store."""
    return tracking_server() or f"sqlite:///{runs_folder() / 'mlflow.db'}"


def opened_uri() -> str:
    """The tracking store, ready to be used: an embedded one is made if it is absent, mended, and read from a copy if it must be.

    Raises:
        ConfigError: there is none, and the folder cannot be written.
        StoreError: the embedded store is damaged, locked, or of another version.
    """
    uri = tracking_uri()
    return opened(database_of(uri), runs_folder()) if embedded(uri) else uri


def client(*, only_read: bool = False) -> MlflowClient:
    """A client of the tracking store; what MLflow itself holds as its current server or run is left alone.

    Args:
        only_read: an embedded store that cannot be written will do.

    Raises:
        ConfigError: the folder of the embedded store cannot be written.
        StoreError: the embedded store is damaged, locked, or of another version.
    """
    uri = tracking_uri()
    if embedded(uri) and not only_read and (reason := unwritable(database_of(uri))):
        raise ConfigError(reason)
    uri = opened_uri()
    return MlflowClient(uri, uri)


@contextmanager
def as_current(uri: str) -> Iterator[None]:
    """The server that MLflow's own registry asks for a model, which it does not pass on; afterwards all is as it was."""
    named = os.environ.get(SERVER)
    try:
        with _use_tracking_uri(uri):  # private: the public `set_tracking_uri` does not tell what to set back
            yield
    finally:
        os.environ.pop(SERVER, None)
        if named is not None:
            os.environ[SERVER] = named


def pages(search: Callable[..., Any], *arguments: Any, **settings: Any) -> list[Any]:
    """All that a search of MLflow finds, page by page."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(*arguments, **settings, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def experiment_id(store: MlflowClient, name: str) -> str:
    """Id of an MLflow experiment, created on first use.

    Raises:
        ConfigError: the tracking server does not answer, or the experiment was deleted.
    """
    location = None
    if embedded(tracking_uri()):
        location = (runs_folder() / "artifacts").as_uri()
    try:
        found = store.get_experiment_by_name(name)
        if found is None:
            return str(store.create_experiment(name, artifact_location=location, tags=experiment_tags()))
    except MlflowException as error:
        found = store.get_experiment_by_name(name) if "RESOURCE_ALREADY_EXISTS" in str(error) else None
        if found is None:
            raise ConfigError(f"no answer from MLflow at {tracking_uri()}: {str(error).splitlines()[0]}") from None
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"MLflow experiment {name!r} was deleted; restore it or choose another", "tracking.experiment"
        )
    return str(found.experiment_id)


def registered_name(experiment: Experiment) -> str:
    """`<data>-<model>-<attack>-vs-<aggregator>`."""
    attack = experiment.attack.name if experiment.attack else "clean"
    return f"{experiment.data.name}-{experiment.model.name}-{attack}-vs-{experiment.aggregator.name}"


def clean_name(experiment: Experiment) -> str:
    """`<data>-<model>-clean`, the name of attack-free twins."""
    return f"{experiment.data.name}-{experiment.model.name}-clean"


def run_name(experiment: Experiment) -> str:
    """What the MLflow UI shows: attack, server and seed."""
    attack = experiment.attack.name if experiment.attack else "no attack"
    server = " + ".join([*experiment.defenses, experiment.aggregator.name])
    return f"{attack} vs {server}, seed {experiment.seed}"


def create_run(
    store: MlflowClient, experiment: Experiment, name: str, kind: str, parent: str | None = None, **tags: str
) -> str:
    """A new MLflow run with the resolved configuration as parameters and artifact; returns its id."""
    check_system(experiment.tracking.system)
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
        "fl.plugins": json.dumps(foreign(experiment)),
        "mlflow.source.git.commit": git_revision(),
        "mlflow.user": _user(),
        "fl.command": command(),
        NOTE: note(described(experiment), experiment, command()),
        **tags,
    }
    if parent:
        labels["mlflow.parentRunId"] = parent
    run_id = store.create_run(
        experiment_id(store, experiment.tracking.experiment), run_name=name, tags=labels
    ).info.run_id
    with ended_as_it_is(store, run_id):
        _record(store, run_id, experiment)
    return str(run_id)


def _record(store: MlflowClient, run_id: str, experiment: Experiment) -> None:
    """Parameters and configuration; the file with the configuration comes last, so that it tells whether all is there."""
    params = [Param(path, str(value)[:6000]) for path, value in flatten(experiment.to_dict()).items()]
    for start in range(0, len(params), 100):
        store.log_batch(run_id, params=params[start : start + 100])
    store.log_text(run_id, json.dumps(environment() | foreign(experiment), indent=1), "environment.json")
    store.log_text(run_id, dump(experiment), CONFIG)


def find_or_create(
    store: MlflowClient, experiment: Experiment, name: str, kind: str, mark: tuple[str, str], **tags: str
) -> str:
    """The run that carries a mark, made if need be; one whose maker was killed meanwhile is completed.

    Args:
        store: client of the tracking store.
        experiment: its configuration.
        name: its name in the tables.
        kind: what it is.
        mark: tag and value that no other run has.
        tags: further tags.
    """
    found = find_tagged(store, experiment.tracking.experiment, *mark)
    if found is None:
        return create_run(store, experiment, name, kind, **dict([mark]), **tags)
    if recorded_text(store, found) is None:
        _record(store, found, experiment)
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"


@contextmanager
def ended_as_it_is(store: MlflowClient, run_id: str) -> Iterator[None]:
    """A run does not stay RUNNING when what is done for it inside comes to no end."""
    try:
        yield
    except ConnectionError:  # the store is away: what it has not heard of is kept on disk
        raise
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if killed else f"{type(error).__name__}: {error}"[:500]
        with suppress(MlflowException, OSError, ConfigError):
            end_children(run_id, "KILLED", "interrupted")
            end_run(store, run_id, "KILLED" if killed else "FAILED", reason)
        raise


def is_there(store: MlflowClient, run_id: str) -> bool:
    """Whether a run is in the store, deleted or not."""
    try:
        return bool(run_id) and bool(find_run(store, run_id))
    except ConfigError:
        return False


def reopen(store: MlflowClient, run_id: str) -> None:
    """Set a run RUNNING again; one that was deleted is restored, with a word.

    Raises:
        ConfigError: there is none with this id.
    """
    if find_run(store, run_id).info.lifecycle_stage == "deleted":
        store.restore_run(run_id)
        logging.getLogger("fl_lightning").warning("run %s had been deleted: restored, since it is continued", run_id)
    store.update_run(run_id, status="RUNNING")


def recorded_config(store: MlflowClient, run_id: str) -> Experiment | None:
    """The configuration that a run has recorded; None where it cannot be read."""
    text = recorded_text(store, run_id)
    with suppress(ValueError):
        return None if text is None else load_text(text, f"{CONFIG} of run {run_id}")
    return None


def recorded_text(store: MlflowClient, run_id: str) -> str | None:
    """The configuration that a run has recorded, as it was written; None where it has none.

    It is an artifact: tags and description are there to be read, and anybody may change them.
    """
    return artifact_text(store, run_id, CONFIG)


def artifact_text(store: MlflowClient, run_id: str, name: str) -> str | None:
    """A text among the artifacts of a run; None where there is none."""
    with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError, ValueError):
        return Path(store.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    return None


def figures_of(run: Run) -> dict[str, float]:
    """The last value of every figure; without those that are logged a second time for MLflow's charts, and the machine's."""
    return {name: value for name, value in run.data.metrics.items() if "/" in name and not name.startswith("system/")}


def recorded_environment(store: MlflowClient, run_id: str) -> dict[str, str]:
    """What the figures of a run were made with, see `environment`; empty where it cannot be read."""
    text = artifact_text(store, run_id, "environment.json")
    with suppress(ValueError, AttributeError):
        return {} if text is None else {str(key): str(value) for key, value in json.loads(text).items()}
    return {}


def end_run(store: MlflowClient, run_id: str, status: str, reason: str | None = None) -> None:
    """Set the final status; a reason becomes a tag."""
    if reason:
        store.set_tag(run_id, "fl.stopped", reason)
    store.set_terminated(run_id, status)


def end_early(store: MlflowClient, run_id: str, reason: str | None) -> None:
    """End a run that a search gave up: as KILLED, so that the pages tell it from those that came to their end."""
    store.set_tag(run_id, ENDED_EARLY, "true")
    end_run(store, run_id, "KILLED", reason)


def ended_early(tags: Mapping[str, str]) -> bool:
    """Whether a search gave the run up; there is nothing left of it to do."""
    return tags.get(ENDED_EARLY) == "true"


def rename(store: MlflowClient, run_id: str, name: str) -> None:
    """Give a run the name by which it can be told from its neighbours; the pages show 16 characters of it."""
    with suppress(MlflowException):  # no run fails for its name
        store.update_run(run_id, name=name)


def describe(store: MlflowClient, run_id: str, experiment: Experiment, *sentences: str) -> None:
    """Put what a run came to on top of its description, unless somebody has written another."""
    tags = store.get_run(run_id).data.tags
    begun = note(described(experiment), experiment, tags.get("fl.command", ""))
    if tags.get(NOTE, "").endswith(begun):
        store.set_tag(run_id, NOTE, "\n\n".join([*sentences, begun]))


def find_run(store: MlflowClient, run_id: str) -> Run:
    """An MLflow run.

    Raises:
        ConfigError: there is none with this id.
        StoreError: the store does not answer.
    """
    try:
        return store.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ConfigError(f"no run {run_id!r} in {tracking_uri()}") from None
        raise StoreError(f"no answer from MLflow at {tracking_uri()}: {str(error).splitlines()[0]}") from None


def look_closer(run_id: str) -> str:
    """What to do to see a run in the browser: the last line of a command."""
    begin = "" if tracking_server() else "fl-lightning ui, then "
    return f"look closer: {begin}{run_link(find_run(client(only_read=True), run_id))}"


def last_step(store: MlflowClient, run_id: str) -> int:
    """The last round that a run has logged, -1 when there is none."""
    return max((metric.step for metric in store.get_metric_history(run_id, "time/round")), default=-1)


def children(store: MlflowClient, run_id: str) -> dict[int, str]:
    """Runs under a parent by seed; the oldest where a seed was started twice."""
    return {int(run.data.tags["fl.seed"]): run.info.run_id for run in reversed(nested(store, run_id))}


def named_children(store: MlflowClient, run_id: str) -> dict[tuple[str, int], str]:
    """Runs under a parent by name of the experiment and seed; the latest where one was started twice."""
    return {
        (run.data.tags["fl.experiment"], int(run.data.tags["fl.seed"])): run.info.run_id
        for run in nested(store, run_id)
    }


def nested(store: MlflowClient, run_id: str, also: str = "") -> list[Run]:
    """Runs under a parent that fit a query, the oldest first."""
    parent = find_run(store, run_id)
    query = f"tags.`mlflow.parentRunId` = '{run_id}'{also}"
    order = ["attributes.start_time ASC"]
    return pages(store.search_runs, [parent.info.experiment_id], query, order_by=order, max_results=PAGE)


def finished(store: MlflowClient, experiment: str) -> dict[str, str]:
    """Finished cells of campaigns in an MLflow experiment: fingerprint -> run.

    The fingerprint is that of the recorded configuration as it reads today, so that a field that came later does not hide a run.
    """
    query = "tags.`fl.kind` = 'cell' AND attributes.status = 'FINISHED'"
    found = pages(store.search_runs, [experiment_id(store, experiment)], query, max_results=PAGE)
    known = {}
    for run in reversed(found):
        recorded = recorded_config(store, run.info.run_id)
        with suppress(ValueError):  # plugins that somebody changed
            if recorded:  # else a setting of it is gone
                known[recorded.fingerprint(json.loads(run.data.tags.get("fl.plugins", "{}")))] = run.info.run_id
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


def end_children(run_id: str, status: str, reason: str) -> list[str]:
    """End every run below that is still RUNNING; returns their ids."""
    store, ended = client(), []
    for run in nested(store, run_id, " AND attributes.status = 'RUNNING'"):
        ended += [*end_children(run.info.run_id, status, reason), run.info.run_id]
        end_run(store, run.info.run_id, status, reason)
    return ended


def take_back(run_id: str, names: Sequence[str], reason: str) -> list[str]:
    """Runs of trials whose end their search has never heard of are run again, and count as KILLED; returns their ids."""
    store = client()
    ended = nested(store, run_id, " AND tags.`fl.kind` = 'trial' AND attributes.status = 'FINISHED'")
    unheard = [run.info.run_id for run in ended if str(run.info.run_name).split(" ")[0] in names]
    for one in unheard:
        end_run(store, one, "KILLED", reason)
    return unheard


class Point(NamedTuple):
    """A figure of a run: at a step, and at a time in seconds since 1970."""

    name: str
    value: float
    step: int
    time: float


def log_missing(store: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Log the points that a run does not hold yet: what a process logged before it was killed does not stand there twice."""
    before = {point.name for point in points} & store.get_run(run_id).data.metrics.keys()
    known = {(one.key, one.step, one.value) for name in before for one in store.get_metric_history(run_id, name)}
    missing = [
        Metric(point.name, point.value, int(point.time * 1000), point.step)
        for point in points
        if (point.name, point.step, point.value) not in known
    ]
    for start in range(0, len(missing), 900):
        store.log_batch(run_id, metrics=missing[start : start + 900])


def log_figures(store: MlflowClient, run_id: str, figures: Mapping[str, float]) -> None:
    """What something came to in the end, see `log_missing`."""
    now = time.time()
    log_missing(store, run_id, [Point(name, value, 0, now) for name, value in figures.items()])


def log_picture(store: MlflowClient, run_id: str, figure: Figure, name: str) -> None:
    """A picture as an artifact; the figure is closed."""
    store.log_figure(run_id, figure, name, save_kwargs={"dpi": 120, "bbox_inches": "tight"})
    pyplot.close(figure)


def log_summary(store: MlflowClient, run_id: str, spread: Mapping[str, Interval]) -> None:
    """Means of several seeds as metrics of their parent, and the intervals as a table."""
    means = {name: one.mean for name, one in spread.items()}
    log_figures(store, run_id, means | {short: means[name] for name, short in HEADLINES.items() if name in means})
    rows = "".join(f"| {name} | {one} |\n" for name, one in spread.items())
    store.log_text(run_id, f"| metric | mean and 95 % interval |\n|---|---|\n{rows}", "summary.md")
