"""A study as plain values: read from Optuna's database, entered into another one."""

import math
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from fl_lightning.errors import ConfigError
from fl_lightning.paths import embedded
from fl_lightning.search import _storage as studies
from fl_lightning.search._storage import studies_url

__all__ = ["PackedStudy", "described_study", "enter_study", "finish_study", "refuse_known_study", "study_of_run"]

Key = Annotated[str, Field(min_length=1, max_length=500)]
KEPT_ATTRIBUTES = ("fl_lightning:", "fixed_params", "constraints", "completed_rung_", "nsga2:", "hyperband:")
"""How attributes of the samplers begin that are packed. Optuna's CMA-ES keeps its state as a pickle: it begins anew."""
UNPACKING = "fl_lightning:unpacking"
"""Attribute of a study whose unpacking is not finished."""


class PackedTrial(BaseModel):
    """A trial of a study; infinite values are written as words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    values: list[float] | None
    params: dict[Key, JsonValue]
    distributions: dict[Key, Annotated[str, Field(max_length=10_000)]]
    user_attrs: dict[Key, JsonValue]
    system_attrs: dict[Key, JsonValue]
    reported: dict[int, float | None]
    began: datetime | None
    ended: datetime | None


class PackedStudy(BaseModel):
    """A study with its trials in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$", max_length=250)]
    directions: list[Literal["MINIMIZE", "MAXIMIZE"]] = Field(min_length=1, max_length=20)
    user_attrs: dict[Key, JsonValue]
    trials: list[PackedTrial] = Field(max_length=1_000_000)


@contextmanager
def _readable() -> Iterator[str | None]:
    """Address of the database of the searches, a file by a copy that can be written; None where there is none."""
    url = studies_url()
    if not embedded(url):
        yield url
        return
    database = Path(url.removeprefix("sqlite:///"))
    if not database.is_file():
        yield None
        return
    with studies.told(url), tempfile.TemporaryDirectory() as folder:
        with (
            closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=20)) as old,
            closing(sqlite3.connect(f"{folder}/optuna.db")) as new,
        ):
            old.backup(new)
        yield f"sqlite:///{folder}/optuna.db"


def study_of_run(reference: str) -> tuple[str | None, str | None]:
    """Name and run of the study that has a name, or a run; None where there is none."""
    with _readable() as url:
        if url is None:
            return None, None
        for summary in optuna.get_all_study_summaries(optuna.storages.RDBStorage(url), include_best_trial=False):
            run_id = summary.user_attrs.get("run_id")
            if reference in (summary.study_name, run_id):
                return summary.study_name, run_id
    return None, None


def described_study(name: str) -> PackedStudy:
    """A study with its trials; one that was under way when it was packed is waiting, failed for good where it was drawn."""
    with _readable() as url:
        if url is None:
            raise ConfigError(f"no study {name!r}")
        study = optuna.load_study(study_name=name, storage=optuna.storages.RDBStorage(url))
        return PackedStudy(
            name=name,
            directions=[direction.name for direction in study.directions],
            user_attrs=study.user_attrs,
            trials=[_packed_trial(trial) for trial in study.get_trials(deepcopy=False)],
        )


def _packed_trial(trial: FrozenTrial) -> PackedTrial:
    running = trial.state == TrialState.RUNNING  # as `end_killed` ends what a killed process left
    return PackedTrial(
        state="FAIL" if running else trial.state.name,
        values=trial.values,
        params=trial.params,
        distributions={name: distribution_to_json(one) for name, one in trial.distributions.items()},
        user_attrs=trial.user_attrs,
        system_attrs={key: value for key, value in trial.system_attrs.items() if key.startswith(KEPT_ATTRIBUTES)},
        reported={step: value if math.isfinite(value) else None for step, value in trial.intermediate_values.items()},
        began=trial.datetime_start,
        ended=datetime.now() if running else trial.datetime_complete,
    )


def refuse_known_study(packed: PackedStudy) -> None:
    """Refuse a study that is here already; one whose unpacking was killed is taken away.

    Raises:
        ConfigError: it is here, or is none.
    """
    for trial in packed.trials:
        _trial(trial, len(packed.directions))
    url = studies_url()
    with studies.making_tables(url):
        storage = studies.storage(url)
        if packed.name in optuna.get_all_study_names(storage):
            if not storage.get_study_system_attrs(storage.get_study_id_from_name(packed.name)).get(UNPACKING):
                raise ConfigError(f"study {packed.name} is here already; nothing is overwritten")
            optuna.delete_study(study_name=packed.name, storage=storage)


def enter_study(packed: PackedStudy) -> None:
    """Enter a study into the database of the searches; it counts as unfinished until `finish_study`."""
    url = studies_url()
    with studies.making_tables(url):
        storage = studies.storage(url)
        study = optuna.create_study(
            storage=storage,
            study_name=packed.name,
            directions=[optuna.study.StudyDirection[direction] for direction in packed.directions],
        )
        _mark(storage, packed.name, unfinished=True)
        for name, value in packed.user_attrs.items():
            study.set_user_attr(name, value)
        study.add_trials([_trial(trial, len(packed.directions)) for trial in packed.trials])


def finish_study(name: str) -> None:
    """The study is here with all that belongs to it."""
    _mark(studies.storage(studies_url()), name, unfinished=False)


def _mark(storage: optuna.storages.RDBStorage, name: str, *, unfinished: bool) -> None:
    storage.set_study_system_attr(storage.get_study_id_from_name(name), UNPACKING, unfinished)


def _trial(packed: PackedTrial, directions: int) -> FrozenTrial:
    """A trial for Optuna.

    Raises:
        ConfigError: it fits no study.
    """
    try:
        distributions = {name: json_to_distribution(text) for name, text in packed.distributions.items()}
        if packed.values is not None and len(packed.values) != directions:
            raise ValueError("a trial has another number of values than the study has directions")
        trial = optuna.create_trial(
            state=TrialState[packed.state],
            values=packed.values,
            params=dict(packed.params),
            distributions=distributions,
            user_attrs=dict(packed.user_attrs),
            system_attrs={key: value for key, value in packed.system_attrs.items() if key.startswith(KEPT_ATTRIBUTES)},
            intermediate_values={step: math.nan if value is None else value for step, value in packed.reported.items()},
        )
        trial.datetime_start, trial.datetime_complete = packed.began, packed.ended
        waits = trial.state == TrialState.WAITING
        if (packed.began is None and not waits) or (packed.ended is not None) != trial.state.is_finished():
            raise ValueError("its times do not fit its state")
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"a trial of its study is none: {error}") from None
    return trial
