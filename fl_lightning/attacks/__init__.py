"""Attacks: what malicious clients submit, and the objectives that they serve."""

from fl_lightning.attacks._alie import Alie, alie, largest_z
from fl_lightning.attacks._alternating_minimization import AlternatingMinimization
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._cmp import Cmp
from fl_lightning.attacks._deep import Deep
from fl_lightning.attacks._fang_krum import FangKrum, fang_krum, fang_krum_partial
from fl_lightning.attacks._fang_median import FangMedian
from fl_lightning.attacks._fang_trimmed_mean import FangTrimmedMean, beyond_extremes, beyond_spread, fang_trimmed_mean
from fl_lightning.attacks._gaussian import Gaussian, gaussian
from fl_lightning.attacks._ipm import Ipm, ipm
from fl_lightning.attacks._label_flip import LabelFlip
from fl_lightning.attacks._model_replacement import ModelReplacement
from fl_lightning.attacks._multi_party import MultiParty, joint_choice
from fl_lightning.attacks._objectives import (
    OBJECTIVES,
    AttributeTrigger,
    Backdoor,
    EdgeCase,
    FeatureTrigger,
    Goal,
    LabelMap,
    Objective,
    Semantic,
    TargetSamples,
    TokenTrigger,
    Trigger,
    Untargeted,
)
from fl_lightning.attacks._patterns import PATTERNS, Bars, Blend, Checker, Patch, Pattern, Sinus, Warp
from fl_lightning.attacks._sign_flip import SignFlip, sign_flip
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import Knowledge, KnowledgeError, View
from fl_lightning.registry import Registry

REGISTRIES = {
    "attack": Registry(
        "attack",
        [
            LabelFlip,
            Gaussian,
            ModelReplacement,
            SignFlip,
            Alie,
            Ipm,
            FangKrum,
            FangTrimmedMean,
            FangMedian,
            Cmp,
            MultiParty,
            AlternatingMinimization,
            Deep,
        ],
    ),
    "objective": Registry("objective", OBJECTIVES),
    "pattern": Registry("pattern", PATTERNS),
}

__all__ = [
    "Alie",
    "AlternatingMinimization",
    "Attack",
    "AttributeTrigger",
    "Backdoor",
    "Bars",
    "Blend",
    "Checker",
    "Choice",
    "Cmp",
    "Deep",
    "EdgeCase",
    "FangKrum",
    "FangMedian",
    "FangTrimmedMean",
    "FeatureTrigger",
    "Gaussian",
    "Goal",
    "Ipm",
    "Knowledge",
    "KnowledgeError",
    "LabelFlip",
    "LabelMap",
    "ModelReplacement",
    "MultiParty",
    "Objective",
    "Patch",
    "Pattern",
    "Poisoned",
    "Semantic",
    "SignFlip",
    "Sinus",
    "TargetSamples",
    "TokenTrigger",
    "Trigger",
    "Tunable",
    "Untargeted",
    "View",
    "Warp",
    "alie",
    "beyond_extremes",
    "beyond_spread",
    "fang_krum",
    "fang_krum_partial",
    "fang_trimmed_mean",
    "gaussian",
    "ipm",
    "joint_choice",
    "largest_z",
    "sign_flip",
]
