"""What attackers want: one objective a file."""

from fl_lightning.attacks._objectives._attribute_trigger import AttributeTrigger
from fl_lightning.attacks._objectives._backdoor import Backdoor
from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._objectives._edge_case import EdgeCase
from fl_lightning.attacks._objectives._feature_trigger import FeatureTrigger
from fl_lightning.attacks._objectives._label_map import LabelMap
from fl_lightning.attacks._objectives._semantic import Semantic
from fl_lightning.attacks._objectives._target_samples import TargetSamples
from fl_lightning.attacks._objectives._token_trigger import TokenTrigger
from fl_lightning.attacks._objectives._trigger import Trigger
from fl_lightning.attacks._objectives._untargeted import Untargeted

OBJECTIVES: list[type[Objective]] = [
    Untargeted,
    LabelMap,
    TargetSamples,
    Trigger,
    TokenTrigger,
    FeatureTrigger,
    AttributeTrigger,
    EdgeCase,
    Semantic,
]

__all__ = [
    "OBJECTIVES",
    "AttributeTrigger",
    "Backdoor",
    "EdgeCase",
    "FeatureTrigger",
    "Goal",
    "Kind",
    "LabelMap",
    "Objective",
    "Semantic",
    "TargetSamples",
    "TokenTrigger",
    "Trigger",
    "Untargeted",
]
