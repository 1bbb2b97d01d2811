"""What a killed run continues from: one folder a run, replaced atomically."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from fl_lightning.federation import Federation, RoundReport
from fl_lightning.paths import runs_folder

__all__ = ["Checkpoint", "run_folder", "save_state", "write_atomically"]

log = logging.getLogger("fl_lightning")


def run_folder(run_id: str) -> Path:
    """Folder of a run's configuration, journal and checkpoint while it is not finished."""
    return runs_folder() / "state" / run_id


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new content and never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_state(federation: Federation, path: Path) -> None:
    """Replace a file by the federation's state; a killed process leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        torch.save(federation.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
        finished = federation.state.round >= federation.experiment.planned_rounds or federation.state.stopped
        if finished or federation.state.round % self.every == 0:
            save_state(federation, self.path)
