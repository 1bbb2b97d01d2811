"""Figures of a round: accuracy, the attacker's success, stealth, detection."""

from fl_lightning.metrics._detection import detection
from fl_lightning.metrics._effect import carried_through, null_space, predicted_effect
from fl_lightning.metrics._evaluation import evaluate
from fl_lightning.metrics._glossary import GLOSSARY, bounds, meaning
from fl_lightning.metrics._interval import Interval, interval, wilson
from fl_lightning.metrics._persistence import persistence
from fl_lightning.metrics._picture import curves
from fl_lightning.metrics._stealth import accuracy_gap, layer_distributions, stealth
from fl_lightning.metrics._torchmetrics import Metric, Torchmetrics
from fl_lightning.registry import Registry

REGISTRIES = {"metric": Registry("metric", Metric, [Torchmetrics])}

__all__ = [
    "GLOSSARY",
    "Interval",
    "Metric",
    "Torchmetrics",
    "accuracy_gap",
    "bounds",
    "carried_through",
    "curves",
    "detection",
    "evaluate",
    "interval",
    "layer_distributions",
    "meaning",
    "null_space",
    "persistence",
    "predicted_effect",
    "stealth",
    "wilson",
]
