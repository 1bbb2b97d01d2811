"""Where things lie on disk."""

import os
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""The shipped configurations; one folder a slot."""


def data_folder() -> Path:
    """Folder for data sets: `FL_LIGHTNING_DATA`, by default `~/.cache/fl_lightning`."""
    return Path(os.environ.get("FL_LIGHTNING_DATA", "~/.cache/fl_lightning")).expanduser()


def runs_folder() -> Path:
    """Folder of the databases, artifacts and checkpoints: `FL_LIGHTNING_RUNS`, by default `./mlruns`."""
    return Path(os.environ.get("FL_LIGHTNING_RUNS", "mlruns")).expanduser().resolve()
