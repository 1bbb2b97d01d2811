"""The configuration of an experiment: load, override, validate, dump."""

from fl_lightning.config._experiment import (
    Experiment,
    dump,
    experiment_names,
    load,
    load_text,
    parse_changes,
    read_yaml,
)
from fl_lightning.config._settings import (
    ALL_ATTACKS,
    THREAT,
    Direction,
    Evaluation,
    Seed,
    Stop,
    SweepSettings,
    Tracking,
    parse_bound,
)
from fl_lightning.registry import Label
from fl_lightning.server import Server

__all__ = [
    "ALL_ATTACKS",
    "THREAT",
    "Direction",
    "Evaluation",
    "Experiment",
    "Label",
    "Seed",
    "Server",
    "Stop",
    "SweepSettings",
    "Tracking",
    "dump",
    "experiment_names",
    "load",
    "load_text",
    "parse_bound",
    "parse_changes",
    "read_yaml",
]
