"""Defenses: detectors and transforms between the clients and the aggregator, and the plain functions behind them."""

from fl_lightning.defenses._accuracy_check import AccuracyCheck
from fl_lightning.defenses._adaptive_clip import AdaptiveClip
from fl_lightning.defenses._afa import Afa
from fl_lightning.defenses._alignins import Alignins
from fl_lightning.defenses._anp import Anp
from fl_lightning.defenses._auror import Auror
from fl_lightning.defenses._backdoor_indicator import BackdoorIndicator
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
from fl_lightning.defenses._chain import Chained, Judged, defended
from fl_lightning.defenses._client_momentum import ClientMomentum
from fl_lightning.defenses._clipped_clustering import ClippedClustering
from fl_lightning.defenses._crfl import Crfl, certified_radius
from fl_lightning.defenses._cross_round import CrossRound
from fl_lightning.defenses._dagmm import Dagmm, dagmm_scores
from fl_lightning.defenses._deepsight import Deepsight
from fl_lightning.defenses._fine_prune import FinePrune
from fl_lightning.defenses._flame import Flame
from fl_lightning.defenses._flanders import Flanders
from fl_lightning.defenses._flare import Flare, mmd2
from fl_lightning.defenses._flcert import certified_clients, client_groups, voted
from fl_lightning.defenses._fldetector import Fldetector
from fl_lightning.defenses._fltrust import Fltrust, fltrust
from fl_lightning.defenses._foolsgold import Foolsgold, foolsgold
from fl_lightning.defenses._freqfed import Freqfed
from fl_lightning.defenses._multi_metrics import MultiMetrics
from fl_lightning.defenses._noise import clip, epsilon, epsilon_rdp
from fl_lightning.defenses._norm_bound import NormBound
from fl_lightning.defenses._pdrr import Pdrr, bloc, pdrr_krum, pdrr_survival
from fl_lightning.defenses._privacy import Cdp, Ldp
from fl_lightning.defenses._pyod import Pyod
from fl_lightning.defenses._rejection import Err, ErrLfr, Lfr, impacts
from fl_lightning.defenses._residual_reweighting import ResidualReweighting
from fl_lightning.defenses._rflbat import Rflbat
from fl_lightning.defenses._sageflow import Sageflow
from fl_lightning.defenses._signguard import Signguard
from fl_lightning.defenses._snowball import Snowball
from fl_lightning.defenses._sparsefed import Sparsefed
from fl_lightning.defenses._statistical_check import StatisticalCheck
from fl_lightning.defenses._three_sigma import ThreeSigma
from fl_lightning.defenses._vae import Vae, vae_scores
from fl_lightning.defenses._zeno import Zeno
from fl_lightning.defenses._zenopp import Zenopp
from fl_lightning.registry import Registry

REGISTRIES = {
    "defense": Registry(
        "defense",
        Defense,
        [
            AccuracyCheck,
            AdaptiveClip,
            Afa,
            Alignins,
            Anp,
            Auror,
            BackdoorIndicator,
            Cdp,
            ClientMomentum,
            ClippedClustering,
            Crfl,
            CrossRound,
            Dagmm,
            Deepsight,
            Err,
            ErrLfr,
            FinePrune,
            Flame,
            Flanders,
            Flare,
            Fldetector,
            Fltrust,
            Foolsgold,
            Freqfed,
            Ldp,
            Lfr,
            MultiMetrics,
            NormBound,
            Pdrr,
            Pyod,
            ResidualReweighting,
            Rflbat,
            Sageflow,
            Signguard,
            Snowball,
            Sparsefed,
            StatisticalCheck,
            ThreeSigma,
            Vae,
            Zeno,
            Zenopp,
        ],
    )
}

__all__ = [
    "AccuracyCheck",
    "AdaptiveClip",
    "Afa",
    "Alignins",
    "Anp",
    "Auror",
    "BackdoorIndicator",
    "Cdp",
    "Chained",
    "ClientMomentum",
    "ClippedClustering",
    "Crfl",
    "CrossRound",
    "Dagmm",
    "Deepsight",
    "Defense",
    "Err",
    "ErrLfr",
    "FinePrune",
    "Flame",
    "Flanders",
    "Flare",
    "Fldetector",
    "Fltrust",
    "Foolsgold",
    "Freqfed",
    "Judged",
    "Ldp",
    "Lfr",
    "MultiMetrics",
    "NormBound",
    "Pdrr",
    "Pyod",
    "ResidualReweighting",
    "Rflbat",
    "Sageflow",
    "ServerContext",
    "Signguard",
    "Snowball",
    "Sparsefed",
    "State",
    "StatisticalCheck",
    "ThreeSigma",
    "Vae",
    "Verdict",
    "Zeno",
    "Zenopp",
    "applied",
    "bloc",
    "certified_clients",
    "certified_radius",
    "client_groups",
    "clients_of",
    "clip",
    "dagmm_scores",
    "defended",
    "detected",
    "epsilon",
    "epsilon_rdp",
    "fltrust",
    "foolsgold",
    "geometry_of",
    "impacts",
    "mmd2",
    "pdrr_krum",
    "pdrr_survival",
    "population_of",
    "trained_columns",
    "trained_of",
    "vae_scores",
    "voted",
]
