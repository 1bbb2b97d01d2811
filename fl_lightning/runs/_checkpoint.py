"""What a killed run continues from: one folder a run, replaced atomically."""

import io
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fl_lightning import tracking
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.paths import runs_folder

__all__ = ["Checkpoint", "check_room", "end_abandoned", "run_folder", "save_state", "write_atomically"]

log = logging.getLogger("fl_lightning")

SPARE_BYTES = 8 * 2**20
"""Room for figures, pictures and the database."""


def run_folder(run_id: str) -> Path:
    """Folder of a run's configuration, journal and checkpoint while it is not finished."""
    return runs_folder() / "state" / run_id


def end_abandoned(parent: str, trials: Sequence[int] = ()) -> None:
    """End what killed processes have left RUNNING under a run, and take away what nobody will continue from.

    Args:
        parent: the run.
        trials: numbers of trials that were killed, though their runs may have come to their end.
    """
    abandoned = tracking.end_children(parent, "KILLED", "its process was killed")
    if trials:
        why = "its process was killed before the search took its figure"
        abandoned += tracking.take_back(parent, [f"#{number}" for number in trials], why)
    for run_id in abandoned:
        shutil.rmtree(run_folder(run_id), ignore_errors=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new content and never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk this makes room for the rest
        raise


def save_state(federation: Federation, path: Path) -> None:
    """Replace a file by the federation's state; a killed process leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # torch's own writer has no word for a full disk
    torch.save(federation.state_dict(), content)
    write_atomically(path, content.getbuffer())


def check_room(federation: Federation) -> None:
    """Refuse a run whose checkpoints and models the disk has no room for.

    Raises:
        ConfigError: naming the folder, what is needed and what is free.
    """
    folder, settings = runs_folder(), federation.experiment.tracking
    while not folder.exists():
        folder = folder.parent
    state, model = _bytes(federation.state_dict()), _bytes(federation.state.global_D)
    kept = sum(round < federation.experiment.planned_rounds for round in settings.keep_rounds)
    models = (
        3 + (federation.paired is not None) if settings.models else 0
    )  # final, strongest, its twin; each in two formats
    needed = 2 * state + (kept + models) * 2 * model + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"needs {needed / 1e6:,.1f} MB for checkpoints and models, and where {runs_folder()} lies {free / 1e6:,.1f} MB are "
            "free: make room, set FL_LIGHTNING_RUNS to another folder, or tracking.models=false",
            "tracking",
        )


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a plain value."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


class Checkpoint:
    """An observer that saves the federation's state.

    Args:
        path: the checkpoint file.
        every: rounds between checkpoints; the last round is always saved.
    """

    def __init__(self, path: Path, every: int = 1):
        self.path = path
        self.every = every

    def restore(self, federation: Federation) -> None:
        """Continue from the checkpoint where there is one that can be read; else the rounds are run again."""
        if not self.path.is_file():
            return
        fresh = federation.state, federation.paired and federation.paired.state
        try:
            saved: dict[str, Any] = torch.load(self.path, weights_only=True)
            federation.load_state_dict(saved)
            state = federation.state
            if state.global_D.shape != fresh[0].global_D.shape or not 0 <= state.round == len(state.history):
                raise ValueError("it is of another experiment")
        except Exception as error:  # cut short by a power cut, written by another version, put there by somebody
            federation.state = fresh[0]
            if federation.paired and fresh[1]:
                federation.paired.state = fresh[1]
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            log.warning("%s cannot be read (%s): begun again from round 0, to the same figures", self.path, reason)

    def start(self, federation: Federation) -> None:
        """Nothing to do."""

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Save the state after a round."""
        finished = federation.state.round >= federation.experiment.planned_rounds or federation.state.over
        if finished or federation.state.round % self.every == 0:
            save_state(federation, self.path)
