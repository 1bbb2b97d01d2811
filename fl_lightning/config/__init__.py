"""The configuration of an experiment: load, override, validate, dump."""

from fl_lightning.config._experiment import Experiment, dump, experiment_names, load, read_yaml
from fl_lightning.config._settings import Direction, Evaluation, SweepSettings, Tracking, parse_bound
from fl_lightning.server import Server

__all__ = [
    "Direction",
    "Evaluation",
    "Experiment",
    "Server",
    "SweepSettings",
    "Tracking",
    "dump",
    "experiment_names",
    "load",
    "parse_bound",
    "read_yaml",
]
