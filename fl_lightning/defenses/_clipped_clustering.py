"""Clipped clustering: two clusters by angle, the larger stays, and no row is longer than the median length of all rounds.

References:
    Li, Ngai, Voigt, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning", IEEE Transactions on
    Big Data 2023, algorithm 2 (ClippedClustering).
    Sattler, Müller, Wiegand, Samek, "On the Byzantine Robustness of Clustered Federated Learning", ICASSP 2020: without clipping.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._clusters import TOO_FEW
from fl_lightning.defenses._spread import median, shortening
from fl_lightning.defenses._verdicts import filtered


def larger_of_two(distances_CC: Tensor) -> Tensor:
    """`[C]` bool on the CPU, the larger of two clusters by average linkage; of equal ones the tighter, then that of row 0.

    Args:
        distances_CC: `[C, C]` symmetric, such as 1 - cos.

    Returns:
        All rows for fewer than four.

    Example:
        >>> x = torch.tensor([0.0, 0.1, 0.2, 1.0])
        >>> larger_of_two((x[:, None] - x).abs())
        tensor([ True,  True,  True, False])
    """
    distances_CC = distances_CC.double().cpu()
    if len(distances_CC) < TOO_FEW:
        return torch.ones(len(distances_CC), dtype=torch.bool)
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage="average")
    first_C = torch.from_numpy(model.fit_predict(distances_CC.numpy()) == 0)
    first_C = first_C if bool(first_C[0]) else ~first_C

    def order(group_C: Tensor) -> tuple[int, float]:
        members, n = distances_CC[group_C][:, group_C], int(group_C.sum())
        return -n, float(members.sum()) / max(1, n * (n - 1))

    return min(first_C, ~first_C, key=order)


class ClippedClustering(Defense):
    """Keeps the larger of two clusters by angle, clipped to the median of all norms so far.

    It always makes two clusters: some honest rows go in every round, also without an attack.

    Attributes:
        clip: whether long rows are shortened; without it this is the clustering of Sattler et al.
        max_tau: largest bound; None: the median alone.
        window: rounds whose norms count; None: all.
    """

    name: ClassVar[str] = "clipped_clustering"
    cites: ClassVar[tuple[str, ...]] = ("li2023clippedclustering", "sattler2020byzantine")
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    clip: bool = True
    max_tau: float | None = Field(default=None, gt=0)
    window: int | None = Field(default=None, ge=1)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The smaller cluster goes; the score is the mean distance to the others."""
        geometry = geometry_of(updates_CD, context).trained
        norms_C, distances_CC = geometry.norms, geometry.cosine_distances
        norms = torch.cat([state["norms"].to(norms_C), norms_C]) if state else norms_C
        now_C = torch.full((len(norms_C),), context.round)
        rounds = torch.cat([state["rounds"].to(now_C), now_C]) if state else now_C
        if self.window is not None:
            recent = rounds > context.round - self.window
            norms, rounds = norms[recent], rounds[recent]
        tau = float(median(norms)) if self.max_tau is None else min(self.max_tau, float(median(norms)))
        return filtered(
            updates_CD,
            context,
            larger_of_two(distances_CC),
            scale_C=shortening(norms_C, tau) if self.clip else None,
            scores_C=distances_CC.mean(1),
            state={"norms": norms, "rounds": rounds},
            metrics={"bound": tau},
        )
