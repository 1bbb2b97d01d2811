"""Statistical check: is an update too far from the others, or does it point elsewhere?

References:
    Chen et al., "A multi-party targeted model poisoning attack against federated learning systems", section 3.
"""

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators import squared_distances
from fl_lightning.defenses._accuracy_check import Centre, centres
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected, trained_of
from fl_lightning.registry import Tunable


def typical_distances(updates_CD: Tensor) -> Tensor:
    """`[C]` float64, the median of each row's Euclidean distances to the other rows.

    The largest distance, which the paper bounds, would let a single outlier incriminate everybody.
    """
    n_rows = len(updates_CD)
    if n_rows == 1:
        return updates_CD.new_zeros(1, dtype=torch.float64)
    distances_CC = squared_distances(updates_CD).sqrt()
    others_CC = distances_CC[~torch.eye(n_rows, dtype=torch.bool)].view(n_rows, n_rows - 1)
    return others_CC.median(1).values.to(updates_CD.device)


class StatisticalCheck(Defense):
    """Flags rows that are typically farther than `max_distance` from the others, or point elsewhere than their centre.

    Attributes:
        max_distance: bound on the median L2 distance to the other rows; None: no bound.
        min_cosine: bound on the cosine with the centre; None: no bound.
        centre: `median`: the coordinate-wise median of all rows. `mean`: the mean of the others, as in the paper; a single
            huge row then turns it against every honest one.
    """

    name: ClassVar[str] = "statistical_check"
    cites: ClassVar[tuple[str, ...]] = ("chen2021multiparty",)
    max_distance: float | None = Field(default=None, gt=0)
    min_cosine: Annotated[float | None, Tunable(-0.5, 0.9)] = Field(default=0.0, ge=-1, le=1)
    centre: Centre = "median"

    @model_validator(mode="after")
    def _something_to_check(self) -> Self:
        if self.max_distance is None and self.min_cosine is None:
            raise ValueError("give max_distance or min_cosine, got None for both")
        return self

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The score is by how much the worse of the two bounds is missed, the distance relative to its bound."""
        excess = []
        if self.max_distance is not None:
            excess.append(typical_distances(trained_of(updates_CD, context)) / self.max_distance - 1)
        if self.min_cosine is not None:
            rows_CD = trained_of(updates_CD, context)
            centre_CD = centres(rows_CD, context.weights_C, self.centre)
            excess.append(self.min_cosine - torch.cosine_similarity(rows_CD, centre_CD, dim=1).double())
        scores_C = torch.stack(excess).amax(0)
        return detected(updates_CD, context, scores_C > 0, scores_C)
