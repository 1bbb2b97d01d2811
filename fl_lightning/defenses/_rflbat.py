"""RFLBAT: outliers and groups among the rows' two principal components; the group whose rows agree least stays.

References:
    Wang, Zhai, Zhan, Xia, "RFLBAT: A Robust Federated Learning Algorithm against Backdoor Attack", arXiv 2201.03772, 2022,
    algorithm 1.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._clusters import errors_of_groups, gap_statistic, k_means
from fl_lightning.defenses._spread import median
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Tunable


def principal_components(squared_CC: Tensor, components: int = 2) -> Tensor:
    """`[C, components]` float64, coordinates of the centred rows along their principal axes, from their distances.

    H G H = -1/2 H d^2 H with H = I - 11^T / C. The sign of an axis is such that its largest coordinate is positive.
    """
    squared_CC = squared_CC.double().cpu()
    rows_C = squared_CC.mean(1)
    centred_CC = -(squared_CC - rows_C[:, None] - rows_C + rows_C.mean()) / 2
    values, vectors = torch.linalg.eigh(centred_CC)
    points = vectors[:, -components:].flip(1) * values[-components:].flip(0).clamp(min=0).sqrt()
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    turned: Tensor = points * torch.where(largest < 0, -1.0, 1.0)
    return turned


def summed_distances(points_CF: Tensor) -> Tensor:
    """`[C]` float64, summed Euclidean distances of each point to the others."""
    return (points_CF[:, None] - points_CF).square().sum(2).sqrt().sum(1)


def _inliers(points_CF: Tensor, keep_C: Tensor, eps: float) -> Tensor:
    """Those kept whose summed distance to the kept is below eps medians; all of them when none would be left."""
    sums = summed_distances(points_CF[keep_C])
    inside = sums < eps * median(sums)
    if not bool(inside.any()):
        return keep_C
    kept_C = keep_C.clone()
    kept_C[keep_C] = inside
    return kept_C


def rflbat(
    squared_CC: Tensor, cosines_CC: Tensor, generator: torch.Generator, eps1: float = 10.0, eps2: float = 4.0
) -> Tensor:
    """`[C]` bool on the CPU, rows that stay.

    Outliers by eps1 go; the gap statistic gives the number of groups; the group with the smallest median of its rows' mean cosine
    to each other stays (attackers agree more; groups of one do not count); outliers by eps2 go. A stage that would drop all is
    left out.

    Args:
        squared_CC: `[C, C]` squared distances.
        cosines_CC: `[C, C]`.
        generator: of the gap statistic and of k-means.
        eps1: in medians of the summed distances.
        eps2: the same, in the end.
    """
    cosines_CC = cosines_CC.double().cpu()
    keep_C = torch.ones(len(squared_CC), dtype=torch.bool)
    if len(keep_C) < 3:
        return keep_C
    points_CF = principal_components(squared_CC)
    keep_C = _inliers(points_CF, keep_C, eps1)
    rows = keep_C.nonzero().flatten()
    groups = gap_statistic(points_CF[rows], 9, lambda sets, k: errors_of_groups(sets, k, generator), generator)
    if groups > 1:
        labels = k_means(points_CF[rows], groups, generator)
        agreement = {}
        for label in set(labels.tolist()):
            members = rows[labels == label]
            if len(members) > 1:
                among = cosines_CC[members][:, members].clone().fill_diagonal_(0)
                agreement[label] = float(median(among.sum(1) / (len(members) - 1)))
        if agreement:
            chosen = min(agreement, key=lambda label: agreement[label])
            keep_C = torch.zeros_like(keep_C)
            keep_C[rows[labels == chosen]] = True
    return _inliers(points_CF, keep_C, eps2)


class Rflbat(Defense):
    """Looks for outliers and groups among two principal components and keeps the group whose rows agree least.

    Of k groups about 1 - 1 / k of the rows go, honest ones with them. Without an attack the gap statistic mostly finds one group
    and nobody goes (digits, iid and Dirichlet 0.5, softmax regression, 20 honest rows: none in ten rounds); attackers that are
    a group make it look for more, and then a fifth (sign flip) to six tenths (ALIE) of the honest rows go, too.

    Attributes:
        eps1: summed distance, in medians, at which a row goes before the grouping.
        eps2: the same after it.
    """

    name: ClassVar[str] = "rflbat"
    cites: ClassVar[tuple[str, ...]] = ("wang2022rflbat",)
    reads_rows: ClassVar[bool] = False

    eps1: Annotated[float, Tunable(2, 30, log=True)] = Field(default=10.0, gt=0)
    eps2: Annotated[float, Tunable(1.1, 10, log=True)] = Field(default=4.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Outliers and the other groups go; the score is the summed distance in the two components."""
        geometry = geometry_of(updates_CD, context).trained
        squared_CC = geometry.squared_distances
        keep_C = rflbat(squared_CC, geometry.cosines, context.generator(self.name), self.eps1, self.eps2)
        scores_C = summed_distances(principal_components(squared_CC))
        return filtered(updates_CD, context, keep_C, scores_C=scores_C)
