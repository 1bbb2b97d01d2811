"""Zeno: rows are ranked by how much each alone lowers the loss on the server's samples, less a price for its length.

References:
    Xie, Koyejo, Gupta, "Zeno: Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance", ICML 2019,
    definition 2. The authors' program takes the mean square where the paper has the squared norm.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Byzantine, assumed
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Tunable


def zeno_scores(before: float, after_C: Tensor, norms_C: Tensor, rho: float) -> Tensor:
    """`[C]` float64, L(theta) - L(theta + x_i) - rho |x_i|^2; larger = better.

    Args:
        before: loss of the global model.
        after_C: `[C]` loss of the model with each update alone; NaN and Inf count as the worst.
        norms_C: `[C]` norms of the updates.
        rho: price of a unit of squared length; for updates -gamma g it is the paper's rho / gamma^2.

    Example:
        >>> import torch
        >>> zeno_scores(1.0, torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]), 0.1)
        tensor([ 0.4000, -1.1000], dtype=torch.float64)
    """
    after_C = after_C.double().nan_to_num(nan=1e12, posinf=1e12).clamp(max=1e12)
    return before - after_C - rho * norms_C.double().square()


class Zeno(Defense):
    """Keeps the rows that alone lower the loss most, at a price for length.

    Attributes:
        n_byzantine: how many rows go (the paper's b, at least the number of attackers).
        rho: price of squared length.
        batch: validation samples that the loss is taken on, drawn afresh each round.
    """

    name: ClassVar[str] = "zeno"
    cites: ClassVar[tuple[str, ...]] = ("xie2019zeno",)
    needs_samples: ClassVar[bool] = True

    n_byzantine: Byzantine
    rho: Annotated[float, Tunable(0.00001, 0.1, log=True)] = Field(default=5e-4, ge=0)
    batch: int = Field(default=128, ge=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The `n_byzantine` rows of lowest score go, at most all but one; the suspicion is minus the score."""
        samples = need_validation(self.name, context.validation)
        rows = torch.randperm(len(samples), generator=context.generator(self.name))[: self.batch]
        batch = samples[rows.to(samples.y.device)]

        def loss(theta_D: Tensor) -> float:
            return float(context.losses(theta_D, batch).double().mean())

        after_C = torch.tensor([loss(context.global_D + row_D) for row_D in updates_CD], dtype=torch.float64)
        norms_C = geometry_of(updates_CD, context).trained.norms
        scores_C = zeno_scores(loss(context.global_D), after_C, norms_C, self.rho)
        order = scores_C.sort(descending=True, stable=True).indices
        keep_C = torch.zeros(len(updates_CD), dtype=torch.bool)
        keep_C[order[: max(1, len(order) - assumed(self.n_byzantine, len(order)))]] = True
        return filtered(updates_CD, context, keep_C, scores_C=-scores_C)
