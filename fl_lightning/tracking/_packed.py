"""Runs, models and registered versions as plain values: read from any store, entered into an embedded one with the same ids."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.model_registry.dbmodels import models as registry_tables
from mlflow.store.tracking.dbmodels import models as tables
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import create_engine, insert, select
from sqlalchemy.orm import Session

from fl_lightning.errors import ConfigError, excerpt
from fl_lightning.paths import runs_folder
from fl_lightning.tracking._registered import STEALTHY, VERSIONS, number
from fl_lightning.tracking._store import experiment_id, find_run, nested, pages

__all__ = ["PackedRuns", "described", "download", "enter", "family", "places", "refuse_known"]

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ModelId = Annotated[str, Field(pattern=r"^m-[0-9a-f]{32}$")]
Name = Annotated[str, Field(min_length=1, max_length=250)]
Text = Annotated[str, Field(max_length=8000)]
Number = Annotated[int, Field(ge=-(2**62), le=2**62)]
Point = tuple[float | None, Number, Number]
"""Value (None: no number), milliseconds since the epoch, round."""

FIGURE_OF = {"strongest": "attack/success", "stealthiest": "stealth/cosine", "clean": "global/accuracy"}
"""By which figure a version holds an alias."""


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PackedData(_Plain):
    """A data set that a run names as its input."""

    name: Name
    digest: Annotated[str, Field(min_length=1, max_length=36)]
    kind: Annotated[str, Field(max_length=36)]
    source: Annotated[str, Field(max_length=100_000)]
    profile: Annotated[str, Field(max_length=100_000)]
    tags: dict[Name, Annotated[str, Field(max_length=500)]]


class PackedRun(_Plain):
    """A run; `models` are the logged ones with their rounds."""

    run_id: RunId
    experiment: Name
    name: Annotated[str, Field(max_length=250)]
    user: Annotated[str, Field(max_length=250)]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    started: Number
    ended: Number | None
    tags: dict[Name, Text]
    params: dict[Name, Text]
    metrics: dict[Name, list[Point]]
    models: list[tuple[ModelId, Number]]
    data: list[PackedData] = Field(default_factory=list, max_length=100)


class PackedModel(_Plain):
    """A logged model; its figures are those of rounds of its run."""

    model_id: ModelId
    run_id: RunId
    name: Name
    created: Number
    changed: Number
    tags: dict[Name, Text]
    metrics: list[tuple[Name, float | None, Number, Number]]


class PackedVersion(_Plain):
    """A version of a registered model; `about` is what is said of its name."""

    name: Annotated[str, Field(pattern=r"^[^/:\x00-\x1f]+$", max_length=250)]
    version: Annotated[int, Field(ge=1, le=10**9)]
    run_id: RunId
    model_id: ModelId
    created: Number
    changed: Number
    description: Annotated[str, Field(max_length=5000)]
    tags: dict[Name, Annotated[str, Field(max_length=5000)]]
    aliases: list[Name]
    about: Annotated[str, Field(max_length=5000)] = ""


class PackedRuns(_Plain):
    """What a pack holds of MLflow, the parent first."""

    runs: list[PackedRun] = Field(min_length=1, max_length=100_000)
    models: list[PackedModel] = Field(max_length=100_000)
    versions: list[PackedVersion] = Field(max_length=100_000)


def family(store: MlflowClient, run_id: str) -> Iterator[Run]:
    """A run and all below it, parents first."""
    yield find_run(store, run_id)
    for child in nested(store, run_id):
        yield from family(store, child.info.run_id)


def described(store: MlflowClient, run_id: str) -> PackedRuns:
    """A run with all below it, their models, and the versions registered of them.

    Raises:
        ConfigError: it was deleted, or holds what no pack can.
    """
    members = list(family(store, run_id))
    if members[0].info.lifecycle_stage == "deleted":
        raise ConfigError(f"run {run_id} was deleted; restore it in the UI first")
    experiments = {run.info.experiment_id for run in members}
    names = {one: store.get_experiment(one).name for one in experiments}
    ids = {run.info.run_id for run in members}
    logged = [
        model
        for experiment in sorted(experiments)
        for model in pages(store.search_logged_models, [experiment])
        if model.source_run_id in ids and model.status == LoggedModelStatus.READY
    ]
    models = {model.model_id for model in logged}
    try:
        return PackedRuns(
            runs=[_run(store, run, names[run.info.experiment_id], models) for run in members],
            models=[_model(model) for model in logged],
            versions=[one for run in sorted(ids) for one in _versions(store, run, models)],
        )
    except ValueError as error:  # pydantic's
        raise ConfigError(f"run {run_id} cannot be packed: {str(error).replace(chr(10), ' ')}") from None


def _run(store: MlflowClient, run: Run, experiment: str, models: set[str]) -> PackedRun:
    history = {name: store.get_metric_history(run.info.run_id, name) for name in sorted(run.data.metrics)}
    status, tags = run.info.status, dict(run.data.tags)
    if status not in ("FINISHED", "FAILED", "KILLED"):  # where it is unpacked nobody is at it
        status, tags["fl.stopped"] = "KILLED", "was not finished when it was packed"
    outputs = run.outputs.model_outputs if run.outputs else []
    return PackedRun(
        run_id=run.info.run_id,
        experiment=experiment,
        name=run.info.run_name or "",
        user=run.info.user_id or "",
        status=status,
        started=run.info.start_time or 0,
        ended=run.info.end_time,
        tags=tags,
        params=dict(run.data.params),
        metrics={
            name: [(finite(point.value), point.timestamp, point.step) for point in points]
            for name, points in history.items()
        },
        models=[(output.model_id, output.step) for output in outputs if output.model_id in models],
        data=sorted(map(_data, run.inputs.dataset_inputs if run.inputs else []), key=lambda one: one.name),
    )


def _data(used: DatasetInput) -> PackedData:
    return PackedData(
        name=used.dataset.name,
        digest=used.dataset.digest,
        kind=used.dataset.source_type,
        source=used.dataset.source,
        profile=used.dataset.profile or "",
        tags={tag.key: tag.value for tag in used.tags},
    )


def _model(model: LoggedModel) -> PackedModel:
    points = [(one.key, finite(one.value), one.timestamp, one.step) for one in model.metrics or []]
    return PackedModel(
        model_id=model.model_id,
        run_id=str(model.source_run_id),
        name=model.name,
        created=model.creation_timestamp,
        changed=model.last_updated_timestamp,
        tags=dict(model.tags or {}),
        metrics=sorted(points, key=lambda point: (point[0], point[3], point[2])),
    )


def _versions(store: MlflowClient, run_id: str, models: set[str]) -> Iterator[PackedVersion]:
    for found in pages(store.search_model_versions, f"run_id = '{run_id}'"):
        model_id = str(found.source).removeprefix("models:/")
        if model_id in models:
            yield PackedVersion(
                name=found.name,
                version=int(found.version),
                run_id=run_id,
                model_id=model_id,
                created=found.creation_timestamp,
                changed=found.last_updated_timestamp or found.creation_timestamp,
                description=found.description or "",
                tags=dict(found.tags),
                aliases=sorted(store.get_model_version(found.name, found.version).aliases),
                about=store.get_registered_model(found.name).description or "",
            )


def finite(value: float | None) -> float | None:
    """A figure, or None where it is no number."""
    return value if value is not None and math.isfinite(value) else None


def places(packed: PackedRuns) -> dict[str, str]:
    """Folders of a pack: where in the folder of the artifacts each belongs."""
    runs = {f"runs/{run.run_id}": f"{run.run_id}/artifacts" for run in packed.runs}
    return runs | {f"models/{model.model_id}": f"models/{model.model_id}/artifacts" for model in packed.models}


def download(store: MlflowClient, packed: PackedRuns, folder: Path) -> None:
    """Fetch the artifacts of all runs and models."""
    for run in packed.runs:
        target = folder / "runs" / run.run_id
        target.mkdir(parents=True)
        _fetch(store.get_run(run.run_id).info.artifact_uri, store.tracking_uri, target)
    for model in packed.models:
        target = folder / "models" / model.model_id
        target.mkdir(parents=True)
        _fetch(store.get_logged_model(model.model_id).artifact_location, store.tracking_uri, target)


def _fetch(uri: str, server: str, target: Path) -> None:
    artifacts = get_artifact_repository(uri, tracking_uri=server)
    if artifacts.list_artifacts():
        artifacts.download_artifacts("", dst_path=str(target))  # type: ignore[no-untyped-call]


def refuse_known(store: MlflowClient, packed: PackedRuns) -> None:
    """Refuse runs and models that the store holds already, deleted ones, too.

    Raises:
        ConfigError: naming the first.
    """
    with Session(create_engine(store.tracking_uri)) as session:
        for what, table, column, ids in (
            ("run", tables.SqlRun, tables.SqlRun.run_uuid, [run.run_id for run in packed.runs]),
            ("model", tables.SqlLoggedModel, tables.SqlLoggedModel.model_id, [one.model_id for one in packed.models]),
        ):
            if len(set(ids)) < len(ids):
                raise ConfigError(f"it holds a {what} twice")
            for one in ids:
                if session.scalar(select(table).where(column == one)):
                    raise ConfigError(f"{what} {one} is in {store.tracking_uri} already; nothing is overwritten")
    known = {run.run_id for run in packed.runs}
    models = {model.model_id for model in packed.models}
    strangers = [model.run_id for model in packed.models if model.run_id not in known]
    strangers += [version.model_id for version in packed.versions if version.model_id not in models]
    strangers += [model for run in packed.runs for model, _ in run.models if model not in models]
    if strangers:
        raise ConfigError(f"it speaks of {excerpt(strangers[0])} without holding it")


def enter(store: MlflowClient, packed: PackedRuns) -> dict[str, str]:
    """Enter all into the embedded store, at once or not at all.

    Ids stay. A version whose name is taken gets the next free number there.

    Returns:
        `name/version` in the pack -> here, where it is another.
    """
    experiments = {name: int(experiment_id(store, name)) for name in {run.experiment for run in packed.runs}}
    of_run = {run.run_id: experiments[run.experiment] for run in packed.runs}
    engine = create_engine(store.tracking_uri, connect_args={"timeout": 60})
    with Session(engine) as session, session.begin():
        numbers = _numbers(session, packed.versions)
        renamed = {old: new for old, new in numbers.items() if old != new}
        for run in packed.runs:
            _enter_run(session, run, of_run[run.run_id], renamed)
        for model in packed.models:
            _enter_model(session, model, of_run[model.run_id], renamed)
        for version in packed.versions:
            _enter_version(session, version, numbers)
    engine.dispose()
    _hold_aliases(store, packed.versions, numbers)
    return renamed


def _enter_run(session: Session, run: PackedRun, experiment: int, renamed: Mapping[str, str]) -> None:
    where = {"run_uuid": run.run_id}
    session.execute(
        insert(tables.SqlRun),
        {
            "run_uuid": run.run_id,
            "name": run.name,
            "source_type": "LOCAL",
            "source_name": "",
            "entry_point_name": "",
            "source_version": "",
            "user_id": run.user,
            "status": run.status,
            "start_time": run.started,
            "end_time": run.ended,
            "lifecycle_stage": "active",
            "artifact_uri": _location(f"{run.run_id}/artifacts"),
            "experiment_id": experiment,
        },
    )
    tags = dict(run.tags)
    if (registered := tags.get("fl.registered_model")) in renamed:
        tags["fl.registered_model"] = renamed[str(registered)]
    points = {
        (name, *_stored(value), timestamp, step)
        for name, points in run.metrics.items()
        for value, timestamp, step in points
    }
    latest = {}
    for point in sorted(points, key=lambda point: (point[4], point[3], point[1])):
        latest[point[0]] = point
    names = ("key", "value", "is_nan", "timestamp", "step")
    _many(session, tables.SqlTag, [where | {"key": key, "value": value} for key, value in tags.items()])
    _many(session, tables.SqlParam, [where | {"key": key, "value": value} for key, value in run.params.items()])
    _many(session, tables.SqlMetric, [where | dict(zip(names, point, strict=True)) for point in sorted(points)])
    _many(session, tables.SqlLatestMetric, [where | dict(zip(names, one, strict=True)) for one in latest.values()])
    outputs = [
        {
            "input_uuid": f"{run.run_id[:16]}{model[2:18]}",
            "source_type": "RUN_OUTPUT",
            "source_id": run.run_id,
            "destination_type": "MODEL_OUTPUT",
            "destination_id": model,
            "step": step,
        }
        for model, step in run.models
    ]
    _many(session, tables.SqlInput, outputs)
    for place, used in enumerate(run.data):
        _enter_data(session, used, run.run_id, experiment, f"{run.run_id[:24]}{place:08x}")


def _enter_data(session: Session, used: PackedData, run_id: str, experiment: int, input_id: str) -> None:
    """Name a data set as input of a run; one that other runs here have used is the same one."""
    table = tables.SqlDataset
    same = (table.experiment_id == experiment, table.name == used.name, table.digest == used.digest)
    known = session.scalar(select(table.dataset_uuid).where(*same))
    row = {"dataset_uuid": input_id, "experiment_id": experiment, "name": used.name, "digest": used.digest}
    row |= {"dataset_source_type": used.kind, "dataset_source": used.source, "dataset_profile": used.profile}
    _many(session, table, [] if known else [row])
    link = {"input_uuid": input_id, "source_type": "DATASET", "source_id": known or input_id}
    _many(session, tables.SqlInput, [link | {"destination_type": "RUN", "destination_id": run_id, "step": 0}])
    tags = [{"input_uuid": input_id, "name": key, "value": value} for key, value in used.tags.items()]
    _many(session, tables.SqlInputTag, tags)


def _enter_model(session: Session, model: PackedModel, experiment: int, renamed: Mapping[str, str]) -> None:
    where = {"model_id": model.model_id, "experiment_id": experiment}
    session.execute(
        insert(tables.SqlLoggedModel),
        where
        | {
            "name": model.name,
            "artifact_location": _location(f"models/{model.model_id}/artifacts"),
            "creation_timestamp_ms": model.created,
            "last_updated_timestamp_ms": model.changed,
            "status": LoggedModelStatus.READY.to_int(),
            "lifecycle_stage": "active",
            "source_run_id": model.run_id,
        },
    )
    tags = dict(model.tags)
    if VERSIONS in tags:
        tags[VERSIONS] = _renamed_versions(tags[VERSIONS], renamed)
    rows = [where | {"tag_key": key, "tag_value": value} for key, value in tags.items()]
    _many(session, tables.SqlLoggedModelTag, rows)
    points = {(key, timestamp, step): value for key, value, timestamp, step in model.metrics}
    figures = [
        where
        | {
            "metric_name": key,
            "metric_timestamp_ms": timestamp,
            "metric_step": step,
            "metric_value": _stored(value)[0],
            "run_id": model.run_id,
        }
        for (key, timestamp, step), value in points.items()
    ]
    _many(session, tables.SqlLoggedModelMetric, figures)


def _renamed_versions(text: str, renamed: Mapping[str, str]) -> str:
    """The tag by which MLflow's pages lead from a model to its versions."""
    try:
        links = [(str(link["name"]), str(link["version"])) for link in json.loads(text)]
    except (ValueError, TypeError, LookupError):
        return "[]"
    moved = [renamed.get(f"{name}/{version}", f"{name}/{version}").split("/") for name, version in links]
    return json.dumps([{"name": name, "version": version} for name, version in moved])


def _numbers(session: Session, versions: Sequence[PackedVersion]) -> dict[str, str]:
    """`name/version` of the pack -> the one that it gets here."""
    table = registry_tables.SqlModelVersion
    taken: dict[str, set[int]] = {}
    for one in versions:
        if one.name not in taken:
            taken[one.name] = set(session.scalars(select(table.version).where(table.name == one.name)))
    numbers = {}
    for one in sorted(versions, key=lambda one: (one.name, one.version)):
        here = taken[one.name]
        free = one.version if one.version not in here else max(here) + 1
        here.add(free)
        numbers[f"{one.name}/{one.version}"] = f"{one.name}/{free}"
    return numbers


def _enter_version(session: Session, version: PackedVersion, numbers: Mapping[str, str]) -> None:
    here = int(numbers[f"{version.name}/{version.version}"].rpartition("/")[2])
    names = registry_tables.SqlRegisteredModel
    if not session.scalar(select(names).where(names.name == version.name)):
        row = {"name": version.name, "creation_time": version.created, "last_updated_time": version.changed}
        session.execute(insert(names), row | {"description": version.about})
        warning = {"name": version.name, "key": "poisoned", "value": version.tags.get("poisoned", "true")}
        session.execute(insert(registry_tables.SqlRegisteredModelTag), warning)
    session.execute(
        insert(registry_tables.SqlModelVersion),
        {
            "name": version.name,
            "version": here,
            "creation_time": version.created,
            "last_updated_time": version.changed,
            "description": version.description,
            "current_stage": "None",
            "source": f"models:/{version.model_id}",
            "storage_location": _location(f"models/{version.model_id}/artifacts"),
            "run_id": version.run_id,
            "status": "READY",
        },
    )
    tags = dict(version.tags)
    for link in (
        "twin_of",
        "clean_twin",
    ):  # once a bare number: twins had no name of their own
        if link in tags:
            other = tags[link] if "/" in tags[link] else f"{version.name}/{tags[link]}"
            tags[link] = numbers.get(other, other)
    rows = [{"name": version.name, "version": here, "key": key, "value": value} for key, value in tags.items()]
    _many(session, registry_tables.SqlModelVersionTag, rows)


def _hold_aliases(store: MlflowClient, versions: Sequence[PackedVersion], numbers: Mapping[str, str]) -> None:
    """An alias that is free here moves in; one that is held stays, unless the figure that it stands for is better."""
    for version in versions:
        here = numbers[f"{version.name}/{version.version}"].rpartition("/")[2]
        for alias in version.aliases:
            try:
                holder = store.get_model_version_by_alias(version.name, alias)
            except MlflowException:
                store.set_registered_model_alias(version.name, alias, here)
                continue
            figure = FIGURE_OF.get(alias)
            old, new = (number(tags.get(figure or "")) for tags in (holder.tags, version.tags))
            fits = alias != "stealthiest" or (number(version.tags.get("attack/success")) or 0.0) >= STEALTHY
            if new is not None and (old is None or new > old) and fits:
                store.set_registered_model_alias(version.name, alias, here)


def _location(path: str) -> str:
    return f"{(runs_folder() / 'artifacts').as_uri()}/{path}"


def _stored(value: float | None) -> tuple[float, bool]:
    """Value and `is_nan`, as MLflow keeps a figure."""
    return (0.0, True) if value is None else (value, False)


def _many(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        session.execute(insert(table), list(rows))
