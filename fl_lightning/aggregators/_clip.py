"""Static clipping before a rule: no row is longer than a bound.

References:
    Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", 2019, section 5 (norm thresholding).
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._arc import clipping_factors
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mixing import PreAggregator
from fl_lightning.aggregators._past import Past
from fl_lightning.registry import Tunable


def clipped_rows(updates_CD: Tensor, max_norm: float) -> Tensor:
    """The rows, each times min(1, max_norm / norm).

    Args:
        updates_CD: `[C, D]` finite, floating point.
        max_norm: > 0, in the unit of the updates.

    Returns:
        `[C, D]` in the dtype of the updates.

    Example:
        >>> import torch
        >>> clipped_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    geometry = Geometry(updates_CD)
    return geometry.scale(clipping_factors(geometry.norms, max_norm)).rows


class Clip(PreAggregator):
    """Scales long rows down to `max_norm`.

    Attributes:
        max_norm: bound on the Euclidean norm of an update.
    """

    name: ClassVar[str] = "clip"
    cites: ClassVar[tuple[str, ...]] = ("sun2019can",)
    translation_equivariant: ClassVar[bool] = False
    returns_equal_rows: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = False
    bounds: ClassVar[bool] = True
    max_norm: Annotated[float, Tunable(0.05, 10, log=True)] = Field(gt=0)

    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """A diagonal matrix."""
        return clipping_factors(geometry.norms, self.max_norm).diag()
