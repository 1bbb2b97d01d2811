"""Residual-based reweighting: rows far from a robust line through the ordered values of each coordinate weigh less.

References:
    Fu, Xie, Li, Chen, "Attack-Resistant Federated Learning with Residual-based Reweighting", arXiv 1912.11464, 2019, section 3.
    Left out: the correction of single extreme values.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, trained_of
from fl_lightning.defenses._spread import median
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Tunable

BLOCK = 2048  # coordinates looked at together: C^2 slopes each


def residual_weights(updates_CD: Tensor, lam: float = 2.0) -> Tensor:
    r"""`[C]` float64, summed over the coordinates: weights of an iteratively reweighted least squares step.

    In each coordinate the values are put in order and a line is laid through (rank, value) by repeated medians, slope
    $\mathrm{med}_i \mathrm{med}_{j \ne i} (y_j - y_i) / (j - i)$. Residuals are divided by
    $1.48 (1 + 5 / (C - 1)) \mathrm{med} |r|$ and by $\sqrt{1 - h_i}$, h the leverage of the rank; the weight is
    min(1, K / |e|), $K = \lambda \sqrt{2 / C}$.

    Args:
        updates_CD: `[C, D]` finite.
        lam: lambda, > 0.
    """
    n_rows = len(updates_CD)
    total_C = torch.zeros(n_rows, dtype=torch.float64, device=updates_CD.device)
    if n_rows < 3:
        return total_C + 1
    rank_C = torch.arange(n_rows, dtype=torch.float64, device=updates_CD.device)
    steps_CC = rank_C - rank_C[:, None]
    others_CC = ~torch.eye(n_rows, dtype=torch.bool, device=updates_CD.device)
    centred_C = rank_C - rank_C.mean()
    leverage_C = 1 / n_rows + centred_C.square() / centred_C.square().sum()
    K = lam * (2 / n_rows) ** 0.5
    for block_CB in torch.split(updates_CD, BLOCK, dim=1):
        ordered_CB, order_CB = block_CB.double().sort(dim=0, stable=True)
        y_BC = ordered_CB.T
        slopes = (y_BC[:, None] - y_BC[:, :, None]) / steps_CC.where(others_CC, 1.0)
        slope_B = median(median(slopes[:, others_CC].view(len(y_BC), n_rows, n_rows - 1)))
        rest_BC = y_BC - slope_B[:, None] * rank_C
        residual_BC = (rest_BC - median(rest_BC)[:, None]).abs()
        spread_B = 1.48 * (1 + 5 / (n_rows - 1)) * median(residual_BC)
        away_BC = residual_BC / (spread_B[:, None].clamp(min=1e-300) * (1 - leverage_C).clamp(min=1e-12).sqrt())
        weight_BC = torch.where(residual_BC > 1e-12 * y_BC.abs().amax(1, keepdim=True), K / away_BC.clamp(min=K), 1.0)
        total_C += torch.zeros_like(ordered_CB).scatter_(0, order_CB, weight_BC.T).sum(1)
    return total_C


class ResidualReweighting(Defense):
    """Weighs rows by how near they lie to a robust line through the ordered values of each coordinate.

    The weights replace sample counts.

    Attributes:
        lam: confidence: residuals beyond lam sqrt(2 / C) deviations count less.
    """

    name: ClassVar[str] = "residual_reweighting"
    cites: ClassVar[tuple[str, ...]] = ("fu2019attack",)

    lam: Annotated[float, Tunable(0.5, 5)] = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; the score is minus the weight."""
        rows_CD = trained_of(updates_CD, context)
        weights_C = residual_weights(rows_CD, self.lam) / rows_CD.shape[1]
        everybody_C = torch.ones(len(updates_CD), dtype=torch.bool)
        verdict = filtered(updates_CD, context, everybody_C, scores_C=-weights_C)
        return verdict._replace(weights_C=weights_C.to(context.weights_C))
