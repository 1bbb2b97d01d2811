"""Attacks: what malicious clients submit, and the objectives that they serve."""

from fl_lightning.attacks._a3fl import A3fl
from fl_lightning.attacks._agr_tailored import AgrTailored
from fl_lightning.attacks._alie import Alie, alie, largest_z
from fl_lightning.attacks._alternating_minimization import AlternatingMinimization
from fl_lightning.attacks._backdoor_training import BackdoorTraining
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._byzfl import Byzfl
from fl_lightning.attacks._chain import Chain, chain
from fl_lightning.attacks._chameleon import Chameleon, contrastive_loss
from fl_lightning.attacks._cmp import Cmp
from fl_lightning.attacks._copies import copies
from fl_lightning.attacks._critical_layers import CriticalLayers, critical_layers
from fl_lightning.attacks._deep import Deep
from fl_lightning.attacks._fang_krum import FangKrum, fang_krum, fang_krum_partial
from fl_lightning.attacks._fang_median import FangMedian
from fl_lightning.attacks._fang_trimmed_mean import FangTrimmedMean, beyond_extremes, beyond_spread, fang_trimmed_mean
from fl_lightning.attacks._fault import Fault, bits_flipped
from fl_lightning.attacks._free_rider import FreeRider, disguised
from fl_lightning.attacks._gaussian import Gaussian, gaussian
from fl_lightning.attacks._hidra import Hidra, hidra, largest_bias
from fl_lightning.attacks._hybrid_sparse import HybridSparse, hybrid_sparse
from fl_lightning.attacks._iba import Iba
from fl_lightning.attacks._ipm import Ipm, ipm
from fl_lightning.attacks._known_rows import known_rows
from fl_lightning.attacks._label_flip import LabelFlip
from fl_lightning.attacks._mimic import Mimic, follow_spread
from fl_lightning.attacks._min_max import MinMax, min_max
from fl_lightning.attacks._min_sum import MinSum, min_sum
from fl_lightning.attacks._model_replacement import ModelReplacement
from fl_lightning.attacks._mpaf import Mpaf, mpaf
from fl_lightning.attacks._multi_party import MultiParty, joint_choice
from fl_lightning.attacks._neurotoxin import Neurotoxin, free_coordinates
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
from fl_lightning.attacks._optimal_alie import OptimalAlie
from fl_lightning.attacks._optimal_ipm import OptimalIpm
from fl_lightning.attacks._patterns import PATTERNS, Bars, Blend, Checker, Patch, Pattern, Sinus, Warp
from fl_lightning.attacks._perturbation import half_flipped, perturbation
from fl_lightning.attacks._pga import Pga
from fl_lightning.attacks._poisonedfl import Poisonedfl, poisonedfl
from fl_lightning.attacks._projected import projected
from fl_lightning.attacks._ray import ray, rays
from fl_lightning.attacks._rop import Rop, rop
from fl_lightning.attacks._services import Services
from fl_lightning.attacks._shuffle import Shuffle, shuffle
from fl_lightning.attacks._sign_flip import SignFlip, sign_flip
from fl_lightning.attacks._three_dfed import ThreeDfed
from fl_lightning.attacks._three_dfed_adapt import adapt, feedback
from fl_lightning.attacks._tunable import Choice, Tunable, as_span
from fl_lightning.attacks._view import Knowledge, KnowledgeError, View
from fl_lightning.registry import Registry

REGISTRIES = {
    "attack": Registry(
        "attack",
        Attack,
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
            MinMax,
            AgrTailored,
            OptimalAlie,
            OptimalIpm,
            MinSum,
            Mimic,
            Poisonedfl,
            Mpaf,
            Rop,
            Hidra,
            HybridSparse,
            FreeRider,
            Fault,
            Shuffle,
            Chain,
            Byzfl,
            Pga,
            Neurotoxin,
            CriticalLayers,
            A3fl,
            Iba,
            Chameleon,
            ThreeDfed,
        ],
    ),
    "objective": Registry("objective", Objective, OBJECTIVES),
    "pattern": Registry("pattern", Pattern, PATTERNS),
}

__all__ = [
    "A3fl",
    "AgrTailored",
    "Alie",
    "AlternatingMinimization",
    "Attack",
    "AttributeTrigger",
    "Backdoor",
    "BackdoorTraining",
    "Bars",
    "Blend",
    "Chain",
    "Chameleon",
    "Checker",
    "Choice",
    "Cmp",
    "CriticalLayers",
    "Deep",
    "EdgeCase",
    "FangKrum",
    "FangMedian",
    "FangTrimmedMean",
    "Fault",
    "FeatureTrigger",
    "FreeRider",
    "Gaussian",
    "Goal",
    "Hidra",
    "HybridSparse",
    "Iba",
    "Ipm",
    "Knowledge",
    "KnowledgeError",
    "LabelFlip",
    "LabelMap",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Mpaf",
    "MultiParty",
    "Neurotoxin",
    "Objective",
    "OptimalAlie",
    "OptimalIpm",
    "Patch",
    "Pattern",
    "Pga",
    "Poisoned",
    "Poisonedfl",
    "Rop",
    "Semantic",
    "Services",
    "Shuffle",
    "SignFlip",
    "Sinus",
    "TargetSamples",
    "ThreeDfed",
    "TokenTrigger",
    "Trigger",
    "Tunable",
    "Untargeted",
    "View",
    "Warp",
    "adapt",
    "alie",
    "as_span",
    "beyond_extremes",
    "beyond_spread",
    "bits_flipped",
    "chain",
    "contrastive_loss",
    "copies",
    "critical_layers",
    "disguised",
    "fang_krum",
    "fang_krum_partial",
    "fang_trimmed_mean",
    "feedback",
    "follow_spread",
    "free_coordinates",
    "gaussian",
    "half_flipped",
    "hidra",
    "hybrid_sparse",
    "ipm",
    "joint_choice",
    "known_rows",
    "largest_bias",
    "largest_z",
    "min_max",
    "min_sum",
    "mpaf",
    "perturbation",
    "poisonedfl",
    "projected",
    "ray",
    "rays",
    "rop",
    "shuffle",
    "sign_flip",
]
