r"""Centered clipping: steps from the last aggregate towards the rows, none of them longer than tau.

References:
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021, equation 3, algorithm 2. Their
    buffer is m <- beta m + g, longer by 1 / (1 - beta) than a normalised momentum; hence their tau = 10 / (1 - beta).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, combined, normalised
from fl_lightning.registry import Tunable


def centered_clipping(
    updates_CD: Tensor, *, tau: float | None = None, steps: int = 1, reference_D: Tensor | None = None
) -> Tensor:
    r"""Repeats v <- v + mean_i clip(x_i - v, tau), from v = the reference.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        tau: how far a row can pull, > 0, in the unit of the updates; None: the median distance from the reference.
        steps: how often.
        reference_D: `[D]` the last aggregate; None: zero.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> centered_clipping(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), tau=1.0)
        tensor([0.3000, 0.6500])
    """
    past = Past(reference_D)
    geometry = Geometry(updates_CD)
    shares_C = torch.full((len(updates_CD),), 1 / len(updates_CD), dtype=torch.float64)
    return combined(geometry, *steps_from(geometry, shares_C, tau, steps, past), past).update


def steps_from(
    geometry: Geometry, shares_C: Tensor, tau: float | None, steps: int, past: Past
) -> tuple[Tensor, Tensor]:
    """Coefficients of the rows, and of the reference where there is one, and the first distances from it.

    With y_i = x_i - v_0 and u = v - v_0 = sum a_i y_i all distances |y_i - u| follow from the products <y_i, y_j>.
    """
    reference_D, squared_CC = past.reference_D, geometry.squared_distances  # the norms follow from the same pass
    lengths_C = geometry.norms if reference_D is None else geometry.distances_from(reference_D)
    squares_C = lengths_C.square()
    products_CC = (squares_C[:, None] + squares_C - squared_CC) / 2
    reach = middle(lengths_C) if tau is None else tau
    a_C = torch.zeros(len(geometry), dtype=torch.float64)
    for _ in range(steps):
        towards_C = products_CC @ a_C
        distances_C = (squares_C - 2 * towards_C + a_C @ towards_C).clamp(min=0).sqrt()
        pull_C = shares_C * torch.where(distances_C > reach, reach / distances_C.clamp(min=1e-300), 1.0)
        a_C = a_C + pull_C - pull_C.sum() * a_C
    if reference_D is not None:
        a_C = torch.cat([a_C, 1 - a_C.sum(0, keepdim=True)])
    return a_C, lengths_C


def middle(values: Tensor) -> float:
    """Median, the mean of the two middle values for an even number."""
    ordered = values.sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


class CenteredClipping(WeightedMean):
    """Moves the last aggregate towards the updates, no step longer than `tau`.

    It bounds what attackers can do in a round; it removes nobody, and a backdoor that is within the bound stays.

    Attributes:
        tau: how far a row can pull; `auto`: the median distance of the round's rows from the last aggregate (the paper gives no
            rule for updates of another size than its own).
        steps: iterations a round.
    """

    name: ClassVar[str] = "centered_clipping"
    cites: ClassVar[tuple[str, ...]] = ("karimireddy2021learning",)
    translation_equivariant: ClassVar[bool] = False

    tau: Annotated[float | Literal["auto"], Tunable(0.05, 10, log=True)] = "auto"
    steps: Annotated[int, Tunable(1, 5, integer=True)] = Field(default=1, ge=1, le=10)

    def __post_init__(self) -> None:
        if self.tau != "auto" and not self.tau > 0:
            raise ValueError(f"tau must be positive or auto, got {self.tau}")

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Only where tau follows the rows."""
        return self.tau == "auto"

    @property
    def returns_equal_rows(self) -> bool:  # type: ignore[override]
        """Only where tau follows the rows."""
        return self.tau == "auto"

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The scores are the distances from the last aggregate."""
        shares_C = normalised(torch.ones(len(geometry)) if weights_C is None else weights_C.cpu().double())
        tau = None if self.tau == "auto" else float(self.tau)
        return Weighed(*steps_from(geometry, shares_C.double(), tau, self.steps, past))
