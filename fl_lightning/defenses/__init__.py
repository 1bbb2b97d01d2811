"""Defenses: detectors and transforms between the clients and the aggregator, and the plain functions behind them."""

from fl_lightning.defenses._accuracy_check import AccuracyCheck
from fl_lightning.defenses._base import (
    Defense,
    ServerContext,
    State,
    Verdict,
    applied,
    clients_of,
    detected,
    geometry_of,
    population_of,
    trained_columns,
    trained_of,
)
from fl_lightning.defenses._dagmm import Dagmm, dagmm_scores
from fl_lightning.defenses._noise import clip, epsilon, epsilon_rdp
from fl_lightning.defenses._norm_bound import NormBound
from fl_lightning.defenses._pdrr import Pdrr, bloc, pdrr_krum, pdrr_survival
from fl_lightning.defenses._privacy import Cdp, Ldp
from fl_lightning.defenses._pyod import Pyod
from fl_lightning.defenses._rejection import Err, ErrLfr, Lfr, impacts
from fl_lightning.defenses._statistical_check import StatisticalCheck
from fl_lightning.defenses._vae import Vae, vae_scores
from fl_lightning.registry import Registry

REGISTRIES = {
    "defense": Registry(
        "defense",
        Defense,
        [AccuracyCheck, Cdp, Dagmm, Err, ErrLfr, Ldp, Lfr, NormBound, Pdrr, Pyod, StatisticalCheck, Vae],
    )
}

__all__ = [
    "AccuracyCheck",
    "Cdp",
    "Dagmm",
    "Defense",
    "Err",
    "ErrLfr",
    "Ldp",
    "Lfr",
    "NormBound",
    "Pdrr",
    "Pyod",
    "ServerContext",
    "State",
    "StatisticalCheck",
    "Vae",
    "Verdict",
    "applied",
    "bloc",
    "clients_of",
    "clip",
    "dagmm_scores",
    "detected",
    "epsilon",
    "epsilon_rdp",
    "geometry_of",
    "impacts",
    "pdrr_krum",
    "pdrr_survival",
    "population_of",
    "trained_columns",
    "trained_of",
    "vae_scores",
]
