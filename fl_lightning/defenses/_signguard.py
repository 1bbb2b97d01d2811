"""SignGuard: rows of a usual length whose shares of positive, zero and negative entries lie in the largest cluster.

References:
    Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering", ICDCS 2022,
    algorithm 2.
"""

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of, trained_columns
from fl_lightning.defenses._spread import count, median, shortening
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Choice, Tunable


def sign_shares(rows_CF: Tensor) -> Tensor:
    """`[C, 3]` float64, shares of positive, zero and negative entries of the rows.

    Example:
        >>> sign_shares(torch.tensor([[1.0, -2.0, 0.0, 3.0]]))
        tensor([[0.5000, 0.2500, 0.2500]], dtype=torch.float64)
    """
    signs = [(rows_CF > 0), (rows_CF == 0), (rows_CF < 0)]
    return torch.stack([sign.double().mean(1) for sign in signs], dim=1)


def usual_lengths(norms_C: Tensor, low: float, high: float) -> Tensor:
    """`[C]` bool, norms from `low` to `high` times their median; all when the median is 0."""
    middle = median(norms_C)
    if middle == 0:
        return torch.ones_like(norms_C, dtype=torch.bool)
    return (norms_C >= low * middle) & (norms_C <= high * middle)


def largest_cluster(features_CF: Tensor, quantile: float = 0.5) -> Tensor:
    """`[C]` bool on the CPU, the largest cluster by mean shift; of equally large ones the one with the lowest row.

    Args:
        features_CF: `[C, F]`.
        quantile: of the distances, for the bandwidth.
    """
    from sklearn.cluster import MeanShift, estimate_bandwidth

    points = features_CF.double().cpu().numpy()
    bandwidth = estimate_bandwidth(points, quantile=quantile) if len(points) > 1 else 0.0
    if bandwidth <= 1e-12:
        return torch.ones(len(points), dtype=torch.bool)
    labels = MeanShift(bandwidth=bandwidth).fit(points).labels_
    sizes = np.bincount(labels)
    winner = next(label for label in labels if sizes[label] == sizes.max())
    return torch.from_numpy(labels == winner)


class Signguard(Defense):
    """Keeps rows of a usual length in the largest cluster of sign statistics, no longer than the median.

    Attributes:
        low: shortest usual norm, in medians.
        high: longest usual norm, in medians.
        coordinates: share of the coordinates whose signs are counted, drawn afresh each round.
        block: draw one contiguous block, as the authors' program does, instead of single coordinates.
        reference: whether the cosine with, or the distance from, the last step of the global model is a feature, too.
    """

    name: ClassVar[str] = "signguard"
    cites: ClassVar[tuple[str, ...]] = ("xu2022signguard",)
    reads_rows: ClassVar[bool] = False

    low: float = Field(default=0.1, ge=0)
    high: Annotated[float, Tunable(1.1, 10, log=True)] = Field(default=3.0, gt=0)
    coordinates: float = Field(default=0.1, gt=0, le=1)
    block: bool = False
    reference: Annotated[Literal["none", "cosine", "distance"], Choice(("none", "cosine", "distance"))] = "none"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}")
        return self

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows outside of either go; all stay when nobody is inside of both. The score is the distance of the shares."""
        geometry = geometry_of(updates_CD, context).trained
        width = trained_columns(updates_CD, context).stop
        random, chosen = context.generator(self.name), count(self.coordinates, width)
        if self.block:
            start = int(torch.randint(width - chosen + 1, (1,), generator=random))
            columns = torch.arange(start, start + chosen)
        else:
            columns = torch.randperm(width, generator=random)[:chosen]
        shares_C3, norms_C = sign_shares(geometry.columns(columns)), geometry.norms
        features_CF = shares_C3
        if self.reference != "none":
            step_D = (context.global_D - context.previous_D)[:width]
            length, along_C = float(step_D.double().norm()), geometry.products(step_D)
            if self.reference == "cosine":
                away_C = along_C / (norms_C * length).clamp(min=1e-300)
            else:
                away_C = geometry.distances_from(step_D)
                away_C = away_C / median(away_C).clamp(min=1e-300)
            features_CF = torch.cat([shares_C3, away_C[:, None]], dim=1)
        middle = median(norms_C)
        return filtered(
            updates_CD,
            context,
            usual_lengths(norms_C, self.low, self.high) & largest_cluster(features_CF),
            scale_C=shortening(norms_C, middle),
            scores_C=(features_CF - median(features_CF.T)).norm(dim=1),
            metrics={"bound": float(middle)},
        )
