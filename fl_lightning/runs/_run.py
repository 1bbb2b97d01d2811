"""Tracked runs: start, finish, continue after a kill, repeat over seeds."""

import errno
import json
import logging
import shutil
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_lightning import tracking
from fl_lightning.config import Experiment, dump, load_text
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, Observer
from fl_lightning.metrics import bounds, interval
from fl_lightning.parallel import exclusive, interruptible
from fl_lightning.runs._checkpoint import Checkpoint, run_folder, write_atomically
from fl_lightning.runs._results import Shown
from fl_lightning.runs._warmup import Warmup

__all__ = ["Outcome", "Watch", "reason", "resume", "run"]

log = logging.getLogger("fl_lightning")

Watch = Callable[[Experiment], Sequence[Observer]]
"""Makes the observers of one run, such as a progress bar."""


@dataclass(frozen=True)
class Outcome(Shown):
    """What a run came to.

    Attributes:
        run_id: MLflow run.
        experiment: the name that the experiment was started by.
        rounds: communication rounds done.
        metrics: last value of every metric.
        model_uri: the final global model in MLflow, or None.
        registered_model: `name/version` in the registry, or None.
        stopped: why the run ended early, or None.
        seeds: outcomes of the single seeds where there are several.
    """

    run_id: str
    experiment: str
    rounds: int
    metrics: dict[str, float]
    model_uri: str | None = None
    registered_model: str | None = None
    stopped: str | None = None
    seeds: tuple["Outcome", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `seeds` and `stopped` only where there is something to tell."""
        plain = asdict(self) | {"seeds": [one.to_dict() for one in self.seeds]}
        return {key: value for key, value in plain.items() if value or key not in ("seeds", "stopped")}


@interruptible()
def run(
    experiment: Experiment,
    name: str = "experiment",
    watch: Watch = lambda experiment: (),
    parent: str | None = None,
    kind: str = "run",
    warmups: Path | None = None,
    title: str | None = None,
) -> Outcome:
    """A tracked run, or one run a seed under a parent where `seeds` asks for it.

    Args:
        experiment: the configuration.
        name: what the experiment is called in tables.
        watch: makes further observers.
        parent: MLflow run to nest under.
        kind: what the run is to its parent.
        warmups: folder of clean rounds that runs before the attack share; None: every run does its own.
        title: name of the MLflow run; None: attack, server and seed.

    Raises:
        ConfigError: anything wrong with configuration, data or disk, before a run is created.
        TrackingGoneError: the tracking server went away for good; the run can be resumed.
    """
    if experiment.seeds:
        store = tracking.client()
        Federation(one_seed(experiment, experiment.seeds[0]))  # bad input shows before a run exists
        run_id = tracking.create_run(
            store, experiment, tracking.run_name(experiment), "seeds", **{"fl.experiment": name}
        )
        _remember(run_id, experiment, name)
        return _run_seeds(run_id, experiment, name, watch)
    federation = Federation(experiment)
    store = tracking.client()
    title = title or tracking.run_name(experiment)
    run_id = tracking.create_run(store, experiment, title, kind, parent, **{"fl.experiment": name})
    _remember(run_id, experiment, name)
    return _continue(run_id, federation, name, watch, warmups)


@interruptible()
def resume(run_id: str, watch: Watch = lambda experiment: ()) -> Outcome:
    """Continue a run where its last checkpoint left it; a finished run just gives its outcome.

    Raises:
        ConfigError: there is no such run, it runs elsewhere, or its folder is gone.
    """
    folder = run_folder(run_id)
    if not (folder / "config.yaml").is_file():
        return _finished(run_id)
    experiment, name = _recall(run_id, folder)
    if experiment.seeds:
        return _run_seeds(run_id, experiment, name, watch)
    return _continue(run_id, Federation(experiment), name, watch)


def _recall(run_id: str, folder: Path) -> tuple[Experiment, str]:
    """Configuration and name of a run: from its folder, or from the store where the folder's was damaged or exchanged."""
    store = tracking.client()
    tags = tracking.find_run(store, run_id).data.tags
    name = tags.get("fl.experiment", "experiment")
    path = folder / "config.yaml"
    try:
        experiment = load_text(path.read_text(encoding="utf-8"), str(path), trusted=True)
        if experiment.digest() == tags.get("fl.config"):
            return experiment, name
    except (OSError, ValueError) as error:
        damage: str | None = (str(error) or type(error).__name__).splitlines()[0]
    else:
        damage = None  # of another experiment, or begun by a version that knew other settings
    recorded = tracking.recorded_config(store, run_id)
    if recorded is None:
        if damage:
            raise ConfigError(
                f"cannot be read ({damage}), and neither can the one in the store: run it anew", str(path)
            )
        return experiment, name
    if damage or recorded != experiment:
        log.warning("%s is damaged or of another run: the configuration in the store is used", path)
    return recorded, name


def reason(error: BaseException) -> str:
    """Why a run failed, in one line: what was raised, and where the whole of it is kept."""
    line = (str(error) or "no message").splitlines()[0]
    return "; ".join([f"{type(error).__name__}: {line}", *getattr(error, "__notes__", ())])


def one_seed(experiment: Experiment, seed: int) -> Experiment:
    """The experiment of a single seed."""
    return experiment.model_copy(update={"seed": seed, "seeds": ()})


def _continue(run_id: str, federation: Federation, name: str, watch: Watch, warmups: Path | None = None) -> Outcome:
    folder = run_folder(run_id)
    with _locked(folder, run_id):
        experiment = federation.experiment
        tracking.reopen(tracking.client(), run_id)
        tracker = tracking.Tracker(experiment, run_id, folder)
        try:
            checkpoint = Checkpoint(folder / "checkpoint.pt", experiment.tracking.checkpoint_every)
            checkpoint.restore(federation)
            # The journal comes first: a round that it holds and the checkpoint does not is run again, not written again.
            federation.observers = [tracker, checkpoint, *watch(experiment)]
            if warmups:
                warmup = Warmup(experiment, warmups)
                warmup.restore(federation)
                federation.observers.append(warmup)
            state = federation.run()
            uri, registered = tracker.finish(federation)
        except tracking.TrackingGoneError:
            raise
        except KeyboardInterrupt:
            tracker.abandon("KILLED", "interrupted")
            raise
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                error.add_note(
                    f"no room is left where {folder} lies; make some, then: fl-lightning run --resume {run_id}"
                )
            if tracker.abandon("FAILED", reason(error), traceback.format_exc()):
                error.add_note(f"the whole of it: error.txt of run {run_id}")
            raise
        metrics = {key: value for figures in state.history for key, value in figures.items()}
    shutil.rmtree(folder)
    return Outcome(run_id, name, state.round, metrics, uri, registered, state.stopped)


def _run_seeds(run_id: str, experiment: Experiment, name: str, watch: Watch) -> Outcome:
    """The runs of all seeds that are not finished yet, then mean and interval on the parent."""
    folder = run_folder(run_id)
    store = tracking.client()
    outcomes = []
    with _locked(folder, run_id), tracking.ended_as_it_is(store, run_id):
        tracking.reopen(store, run_id)
        known = tracking.children(store, run_id)
        for seed in experiment.seeds:
            if seed in known:
                outcomes.append(resume(known[seed], watch))
            else:
                outcomes.append(run(one_seed(experiment, seed), name, watch, parent=run_id, title=f"seed {seed}"))
        spread = {metric: interval(values, bounds(metric)) for metric, values in _by_metric(outcomes).items()}
        tracking.log_summary(store, run_id, spread)
        tracking.end_run(store, run_id, "FINISHED")
    shutil.rmtree(folder)
    metrics = {metric: one.mean for metric, one in spread.items()}
    return Outcome(run_id, name, experiment.planned_rounds, metrics, seeds=tuple(outcomes))


def _by_metric(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    shared = set.intersection(*(set(outcome.metrics) for outcome in outcomes))
    return {metric: [outcome.metrics[metric] for outcome in outcomes] for metric in sorted(shared)}


def _finished(run_id: str) -> Outcome:
    store = tracking.client(only_read=True)
    found = tracking.find_run(store, run_id)
    tags = found.data.tags
    if found.info.status != "FINISHED" and not tracking.is_pruned(tags.get("fl.stopped")):
        raise ConfigError(
            f"run {run_id} is {found.info.status} and {run_folder(run_id)} is not here: "
            "resume it on the machine and in the folder where it was started"
        )
    last = tracking.last_step(store, run_id)
    return Outcome(
        run_id,
        tags.get("fl.experiment", "experiment"),
        last + 1,
        tracking.figures_of(found),
        tags.get("fl.model_uri"),
        tags.get("fl.registered_model"),
        tags.get("fl.stopped"),
    )


def _remember(run_id: str, experiment: Experiment, name: str) -> None:
    folder = run_folder(run_id)
    with tracking.ended_as_it_is(tracking.client(), run_id):
        folder.mkdir(parents=True)
        write_atomically(folder / "run.json", json.dumps({"experiment": name}).encode())
        write_atomically(folder / "config.yaml", dump(experiment).encode())


def _locked(folder: Path, run_id: str) -> AbstractContextManager[None]:
    return exclusive(folder / "lock", f"run {run_id} is running in another process")
