"""Attacks: what malicious clients submit, and the objectives that they serve."""

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._gaussian import Gaussian
from fl_lightning.attacks._label_flip import LabelFlip
from fl_lightning.attacks._model_replacement import ModelReplacement
from fl_lightning.attacks._objectives import Goal, LabelMap, Objective, TargetSamples, Trigger, Untargeted
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import Knowledge, KnowledgeError, View
from fl_lightning.registry import Registry

REGISTRIES = {
    "attack": Registry("attack", [LabelFlip, Gaussian, ModelReplacement]),
    "objective": Registry("objective", [Untargeted, LabelMap, TargetSamples, Trigger]),
}

__all__ = [
    "Attack",
    "Choice",
    "Gaussian",
    "Goal",
    "Knowledge",
    "KnowledgeError",
    "LabelFlip",
    "LabelMap",
    "ModelReplacement",
    "Objective",
    "Poisoned",
    "TargetSamples",
    "Trigger",
    "Tunable",
    "Untargeted",
    "View",
]
