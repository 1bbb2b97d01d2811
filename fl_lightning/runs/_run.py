"""A tracked run of one seed: start, finish, continue after a kill."""

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
from fl_lightning.parallel import exclusive
from fl_lightning.paths import embedded, is_file
from fl_lightning.runs._checkpoint import Checkpoint, check_room, run_folder, write_atomically
from fl_lightning.runs._results import Shown
from fl_lightning.runs._warmup import Warmup

__all__ = ["Outcome", "Under", "Watch", "no_observers", "one_seed", "reason", "resume_one", "run_one"]

log = logging.getLogger("fl_lightning")

NOT_BEGUN = "its process was killed before it began"

Watch = Callable[[Experiment], Sequence[Observer]]
"""Makes the observers of one run, such as a progress bar."""


def no_observers(experiment: Experiment) -> tuple[()]:
    """Nobody watches."""
    return ()


@dataclass(frozen=True)
class Under:
    """Where a run belongs in the store; by default it stands alone.

    Attributes:
        parent: MLflow run to nest under, or None.
        kind: what the run is to its parent.
        title: name of the MLflow run; None: attack, server and seed.
    """

    parent: str | None = None
    kind: str = "run"
    title: str | None = None


ALONE = Under()


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
        stopped: what ended the run before its time, or None.
        reached: what `experiment.stop` waited for, where it was there.
        seeds: outcomes of the single seeds where there are several.
    """

    run_id: str
    experiment: str
    rounds: int
    metrics: dict[str, float]
    model_uri: str | None = None
    registered_model: str | None = None
    stopped: str | None = None
    reached: str | None = None
    seeds: tuple["Outcome", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `seeds`, `stopped` and `reached` only where there is something to tell."""
        plain = asdict(self) | {"seeds": [one.to_dict() for one in self.seeds]}
        return {key: value for key, value in plain.items() if value or key not in ("seeds", "stopped", "reached")}


def run_one(
    experiment: Experiment,
    name: str,
    watch: Watch = no_observers,
    under: Under = ALONE,
    warmups: Path | None = None,
) -> Outcome:
    """A tracked run of one seed; see `run`."""
    federation = Federation(experiment)
    check_room(federation)
    title, named = under.title or tracking.run_name(experiment), {"fl.experiment": name}
    run_id = tracking.create_run(tracking.client(), experiment, title, under.kind, under.parent, **named)
    remember(run_id, experiment, name)
    return continue_run(run_id, federation, name, watch, warmups)


def resume_one(run_id: str, watch: Watch = no_observers) -> Outcome:
    """Continue a run of one seed; see `resume`."""
    if not is_begun(run_id):
        return finished_outcome(run_id)
    experiment, name = recall(run_id)
    return continue_run(run_id, Federation(experiment), name, watch)


def is_begun(run_id: str) -> bool:
    """Whether the folder of a run that is not finished is here."""
    return Path(run_id).name == run_id and is_file(run_folder(run_id) / "config.yaml")


def recall(run_id: str) -> tuple[Experiment, str]:
    """Configuration and name of a run: from its folder, or from the store where the folder's was damaged or exchanged."""
    store = tracking.client()
    path = run_folder(run_id) / "config.yaml"
    if not tracking.is_there(store, run_id):
        raise ConfigError(
            f"run {run_id} is not in {tracking.tracking_uri()} any more, only its state is here: put its database back, or run "
            f"{path} anew"
        )
    tags = tracking.find_run(store, run_id).data.tags
    name = tags.get("fl.experiment", "experiment")
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


def continue_run(run_id: str, federation: Federation, name: str, watch: Watch, warmups: Path | None = None) -> Outcome:
    """Run what is left of a run, and put it into the store."""
    folder = run_folder(run_id)
    with held(run_id):
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
            if tracking.disk_full(error):
                error.add_note(
                    f"no room is left where {folder} lies; make some, then: fl-lightning run --resume {run_id}"
                )
            if tracker.abandon("FAILED", reason(error), traceback.format_exc()):
                error.add_note(f"the whole of it: error.txt of run {run_id}")
            raise
        metrics = {key: value for figures in state.history for key, value in figures.items()}
    shutil.rmtree(folder)
    return Outcome(run_id, name, state.round, metrics, uri, registered, state.stopped, state.reached)


def finished_outcome(run_id: str) -> Outcome:
    """What a finished run came to, from the store.

    Raises:
        ConfigError: it is not finished, and its folder is not here.
    """
    store = tracking.client(only_read=True)
    found = tracking.find_run(store, run_id)
    tags = found.data.tags
    if tags.get("fl.kind") in ("study", "campaign"):
        raise ConfigError(
            f"run {run_id} is a {tags['fl.kind']} of several runs: give its command again, and it goes on"
        )
    if found.info.status == "RUNNING" and embedded(store.tracking_uri) and not found.data.metrics:
        tracking.end_run(tracking.client(), run_id, "KILLED", NOT_BEGUN)
        shutil.rmtree(run_folder(run_id), ignore_errors=True)
        tags = tags | {"fl.stopped": NOT_BEGUN}
    if tags.get("fl.stopped") == NOT_BEGUN:
        raise ConfigError(f"run {run_id} had not begun when its process was killed: give its command again")
    if found.info.status != "FINISHED" and not tracking.ended_early(tags):
        raise ConfigError(
            f"run {run_id} is {found.info.status} and {run_folder(run_id)} is not here: "
            "resume it on the machine and in the folder where it was started"
        )
    shutil.rmtree(run_folder(run_id), ignore_errors=True)  # of a process that was killed while it tidied up
    last = tracking.last_step(store, run_id)
    return Outcome(
        run_id,
        tags.get("fl.experiment", "experiment"),
        last + 1,
        tracking.figures_of(found),
        tags.get("fl.model_uri"),
        tags.get("fl.registered_model"),
        tags.get("fl.stopped"),
        tags.get("fl.reached"),
    )


def remember(run_id: str, experiment: Experiment, name: str) -> None:
    """Put down what a killed run is continued from."""
    folder = run_folder(run_id)
    with tracking.ended_as_it_is(tracking.client(), run_id):
        folder.mkdir(parents=True)
        write_atomically(folder / "run.json", json.dumps({"experiment": name}).encode())
        write_atomically(folder / "config.yaml", dump(experiment).encode())


def held(run_id: str) -> AbstractContextManager[None]:
    """Nobody else works on the run inside.

    Raises:
        ConfigError: another process does.
    """
    return exclusive(run_folder(run_id) / "lock", f"run {run_id} is running in another process")
