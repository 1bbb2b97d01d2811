"""Aggregators: the server's rules, `[C, D] -> [D]`, each as a component and as a plain function on tensors."""

from fl_lightning.aggregators._base import Aggregate, Aggregator, finite_rows
from fl_lightning.aggregators._bulyan import Bulyan, bulyan
from fl_lightning.aggregators._distances import squared_distances
from fl_lightning.aggregators._geometric_median import GeometricMedian, geometric_median
from fl_lightning.aggregators._krum import Krum, krum, krum_scores
from fl_lightning.aggregators._mean import Mean, mean
from fl_lightning.aggregators._median import Median, median
from fl_lightning.aggregators._multi_krum import MultiKrum, multi_krum
from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._trimmed_mean import TrimmedMean, trimmed_mean
from fl_lightning.registry import Registry

REGISTRIES = {
    "aggregator": Registry(
        "aggregator", Aggregator, [Bulyan, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean]
    )
}

__all__ = [
    "Aggregate",
    "Aggregator",
    "Bulyan",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "TrimmedMean",
    "bulyan",
    "finite_rows",
    "geometric_median",
    "krum",
    "krum_scores",
    "mean",
    "median",
    "multi_krum",
    "ranked_blocks",
    "squared_distances",
    "trimmed_mean",
]
