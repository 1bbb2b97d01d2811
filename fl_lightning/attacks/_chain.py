"""Chain: crafted updates that link up with the larger cluster of honest ones from its far side.

References:
    Li, Ngai, Voigt, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning", IEEE Transactions on
    Big Data 2023 (clipped clustering): the server keeps the larger of two clusters by cosine distance.
"""

from math import cos, pi, sin
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import direction, wide
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.defenses import State

MARGIN, NEARER = 0.1, 1e-4
"""Radians: how much closer than the other cluster the crafted update must be, and a little more."""


def angles(rows_HD: Tensor) -> Tensor:
    """`[H, H]` float64 on the CPU: angles between the rows, pi / 2 to a zero row."""
    lengths_H = torch.linalg.vector_norm(rows_HD, dim=1, keepdim=True)
    units_HD = rows_HD / torch.where(lengths_H > 0, lengths_H, 1)
    angles_HH = (units_HD @ units_HD.T).double().cpu().clamp(-1, 1).acos()
    return ((angles_HH + angles_HH.T) / 2).fill_diagonal_(0)


def two_clusters(angles_HH: Tensor) -> Tensor:
    """`[H]` bool: the larger of two single-linkage clusters; of equally large ones that of the first row."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(angles_HH.numpy(), checks=False), method="single")
    labels_H = torch.from_numpy(fcluster(tree, 2, criterion="maxclust"))
    first_H = labels_H == labels_H[0]
    return first_H if 2 * int(first_H.sum()) >= len(labels_H) else ~first_H


def chain(known_HD: Tensor, scale: float = 10.0) -> tuple[Tensor, float]:
    """The update beyond the outermost row of the larger cluster, just close enough to be taken for one of its members.

    The rows are split into two clusters by the angles between them. In the plane of the mean and the larger cluster's row that
    is farthest from it, the crafted update lies beyond that row by the smallest angle between the clusters, less 0.1 and
    1e-4 rad. Corrected here: the angle between the *clusters* decides which links are made first, not the smallest between
    any two rows.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        scale: norm of the crafted update in units of the median norm.

    Returns:
        `[D]` what all malicious clients send, and its angle to the mean in radians; -scale times the mean where the angle would
        pass pi, the mean where two clusters cannot be told apart.
    """
    known_HD = wide(known_HD)
    mean_D = known_HD.mean(0)
    angles_HH = angles(torch.cat([mean_D[None], known_HD]))
    if len(known_HD) < 2 or not bool(angles_HH.any()):
        return mean_D, 0.0
    larger_H = two_clusters(angles_HH[1:, 1:])
    between = float(angles_HH[1:, 1:][larger_H][:, ~larger_H].min()) if bool((~larger_H).any()) else 0.0
    to_mean_H = angles_HH[0, 1:].masked_fill(~larger_H, -1)
    farthest = int(to_mean_H.argmax())
    angle = float(to_mean_H[farthest]) + max(0.0, between - MARGIN - NEARER)
    if angle > pi:
        return -scale * mean_D, pi
    along_D = direction(mean_D)
    aside_D = direction(known_HD[farthest] - (known_HD[farthest] @ along_D) * along_D)
    length = scale * float(torch.linalg.vector_norm(known_HD, dim=1).median())
    return length * (cos(angle) * along_D + sin(angle) * aside_D), angle


class Chain(Crafted):
    """Chain: all malicious clients send one update that clusters with the honest majority, turned away from its mean.

    Made against servers that keep the larger of two clusters of directions and bound norms by the median.

    Attributes:
        scale: norm of the crafted update in units of the honest median.
    """

    name: ClassVar[str] = "chain"
    cites: ClassVar[tuple[str, ...]] = ("li2023experimental",)
    needs: ClassVar[Knowledge] = "full"
    serves: ClassVar[tuple[str, ...]] = ("any",)

    knowledge: Knowledge = "full"
    scale: Annotated[float, Tunable(0.5, 50, log=True)] = Field(default=10.0, gt=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the update beyond the cluster's edge."""
        known_HP = known_parameters(view)
        crafted_P, angle = chain(known_HP, self.scale)
        return Poisoned(self.rows(view, crafted_P, known_HP.mean(0)), metrics={"angle": angle})
