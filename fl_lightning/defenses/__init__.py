"""Defenses: detectors and transforms between the clients and the aggregator, and the plain functions behind them."""

from fl_lightning.defenses._accuracy_check import AccuracyCheck
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected
from fl_lightning.defenses._noise import clip, epsilon
from fl_lightning.defenses._norm_bound import NormBound
from fl_lightning.defenses._pdrr import Pdrr, bloc, pdrr_krum, pdrr_survival
from fl_lightning.defenses._privacy import Cdp, Ldp
from fl_lightning.defenses._rejection import Err, ErrLfr, Lfr, impacts
from fl_lightning.defenses._statistical_check import StatisticalCheck
from fl_lightning.registry import Registry

REGISTRIES = {
    "defense": Registry("defense", [AccuracyCheck, Cdp, Err, ErrLfr, Ldp, Lfr, NormBound, Pdrr, StatisticalCheck])
}

__all__ = [
    "AccuracyCheck",
    "Cdp",
    "Defense",
    "Err",
    "ErrLfr",
    "Ldp",
    "Lfr",
    "NormBound",
    "Pdrr",
    "ServerContext",
    "State",
    "StatisticalCheck",
    "Verdict",
    "bloc",
    "clip",
    "detected",
    "epsilon",
    "impacts",
    "pdrr_krum",
    "pdrr_survival",
]
