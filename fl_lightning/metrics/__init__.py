"""Figures of a round: accuracy, the attacker's success, stealth, detection."""

from fl_lightning.metrics._detection import detection
from fl_lightning.metrics._evaluation import evaluate
from fl_lightning.metrics._interval import Interval, interval
from fl_lightning.metrics._persistence import persistence
from fl_lightning.metrics._picture import curves
from fl_lightning.metrics._stealth import accuracy_gap, stealth

__all__ = ["Interval", "accuracy_gap", "curves", "detection", "evaluate", "interval", "persistence", "stealth"]
