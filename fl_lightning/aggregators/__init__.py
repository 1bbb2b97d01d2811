"""Aggregators: the server's rules, `[C, D] -> [D]`, each as a component and as a plain function on tensors."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from fl_lightning.aggregators._arc import Arc, arc
from fl_lightning.aggregators._base import Aggregate, Aggregator, RoundRefusedError, finite_rows
from fl_lightning.aggregators._bucketing import Bucketing, bucketing
from fl_lightning.aggregators._bulyan import Bulyan, bulyan
from fl_lightning.aggregators._byzantine import Auto, Byzantine, assumed
from fl_lightning.aggregators._byzfl import Byzfl
from fl_lightning.aggregators._caf import Caf, caf
from fl_lightning.aggregators._centered_clipping import CenteredClipping, centered_clipping
from fl_lightning.aggregators._cge import Cge, cge
from fl_lightning.aggregators._clip import Clip, clipped_rows
from fl_lightning.aggregators._distances import direct_distances, squared_distances
from fl_lightning.aggregators._dnc import Dnc, dnc
from fl_lightning.aggregators._foundation import Foundation, foundation
from fl_lightning.aggregators._geometric_median import GeometricMedian, geometric_median
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._krum import Krum, krum, krum_scores
from fl_lightning.aggregators._lasa import Lasa, lasa
from fl_lightning.aggregators._layout import Classifier, Layer, Layout, last_layer, layout_of
from fl_lightning.aggregators._mda import Mda, mda
from fl_lightning.aggregators._meamed import Meamed, meamed
from fl_lightning.aggregators._mean import Mean, mean
from fl_lightning.aggregators._median import Median, median
from fl_lightning.aggregators._mixing import Mixed, PreAggregator
from fl_lightning.aggregators._monna import Monna, monna
from fl_lightning.aggregators._multi_krum import MultiKrum, multi_krum
from fl_lightning.aggregators._nnm import Nnm, nnm
from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._rlr import Rlr, rlr
from fl_lightning.aggregators._sign_vote import SignVote, sign_vote
from fl_lightning.aggregators._smea import Smea, smea
from fl_lightning.aggregators._trimmed_mean import TrimmedMean, trimmed_mean
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean
from fl_lightning.errors import errors_under, explain
from fl_lightning.registry import Registry, named_config, registry


class Aggregators(Registry):
    """The rules, which may have pre-aggregators in front: `{name: krum, n_byzantine: 2, pre: [arc, nnm]}`."""

    def build(self, value: Any) -> Any:
        """A rule, or a rule behind its pre-aggregators.

        Raises:
            ConfigError: as of a rule, and for what is wrong with a step before it.
        """
        if isinstance(value, Mixed):
            return value
        if isinstance(value, str):
            value = named_config(self.slot, value) or value
        if not isinstance(value, Mapping) or self._has_own(value):
            return super().build(value)
        rest = dict(value)
        pre = rest.pop("pre", None)
        rule = super().build(rest)
        if not pre:
            return rule
        with errors_under("pre"):
            steps = [
                registry("pre_aggregator").build(step) for step in (pre if isinstance(pre, list | tuple) else [pre])
            ]
        try:
            return Mixed(rule=rule, pre=tuple(steps))
        except ValidationError as error:
            explain(error, ["rule", "pre"])

    def _has_own(self, value: Mapping[Any, Any]) -> bool:
        """Whether `pre` is a field of the rule itself."""
        name = value.get("name")
        return "pre" in value and isinstance(name, str) and "pre" in {field.name for field in fields(self[name])}


REGISTRIES = {
    "aggregator": Aggregators(
        "aggregator",
        Aggregator,
        [
            Bulyan,
            Byzfl,
            Caf,
            CenteredClipping,
            Cge,
            Dnc,
            GeometricMedian,
            Krum,
            Lasa,
            Mda,
            Mean,
            Meamed,
            Median,
            Monna,
            MultiKrum,
            Rlr,
            SignVote,
            Smea,
            TrimmedMean,
        ],
    ),
    "pre_aggregator": Registry("pre_aggregator", PreAggregator, [Arc, Bucketing, Clip, Foundation, Nnm]),
}

__all__ = [
    "Aggregate",
    "Aggregator",
    "Aggregators",
    "Arc",
    "Auto",
    "Bucketing",
    "Bulyan",
    "Byzantine",
    "Byzfl",
    "Caf",
    "CenteredClipping",
    "Cge",
    "Classifier",
    "Clip",
    "Dnc",
    "Foundation",
    "GeometricMedian",
    "Geometry",
    "Krum",
    "Lasa",
    "Layer",
    "Layout",
    "Mda",
    "Meamed",
    "Mean",
    "Median",
    "Mixed",
    "Monna",
    "MultiKrum",
    "Nnm",
    "Past",
    "PreAggregator",
    "Rlr",
    "RoundRefusedError",
    "SignVote",
    "Smea",
    "TrimmedMean",
    "Weighed",
    "WeightedMean",
    "arc",
    "assumed",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "cge",
    "clipped_rows",
    "direct_distances",
    "dnc",
    "finite_rows",
    "foundation",
    "geometric_median",
    "krum",
    "krum_scores",
    "lasa",
    "last_layer",
    "layout_of",
    "mda",
    "meamed",
    "mean",
    "median",
    "monna",
    "multi_krum",
    "nnm",
    "ranked_blocks",
    "rlr",
    "sign_vote",
    "smea",
    "squared_distances",
    "trimmed_mean",
]
