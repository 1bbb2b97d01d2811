"""Adaptive federated averaging: rows unlike the weighted mean go turn by turn, and a client that often does is blocked.

References:
    Muñoz-González, Co, Lupu, "Byzantine-Robust Federated Machine Learning through Adaptive Model Averaging",
    arXiv 1909.05125, 2019, algorithm 1.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, clients_of, geometry_of, population_of
from fl_lightning.defenses._clusters import TOO_FEW
from fl_lightning.defenses._spread import median
from fl_lightning.defenses._verdicts import filtered, trained_model
from fl_lightning.registry import Choice, Tunable


class Similar(NamedTuple):
    """What AFA decided.

    Attributes:
        keep_C: `[C]` bool, good rows.
        similarity_C: `[C]` float64, cosines with the last weighted mean.
    """

    keep_C: Tensor
    similarity_C: Tensor


def afa(
    squared_CC: Tensor,
    norms_C: Tensor,
    weights_C: Tensor,
    along_C: Tensor | None = None,
    length: float = 0.0,
    xi: float = 2.0,
    xi_step: float = 0.5,
) -> Similar:
    """Rows whose cosine with the weighted mean is no outlier among the good rows.

    Each turn: s_i = cos(v_i, mean of the good v with the weights); where the mean of s is below its median, rows below median -
    xi std go, otherwise rows above median + xi std; xi grows by xi_step; until a turn drops nobody, or would drop everybody.

    Args:
        squared_CC: `[C, C]` squared distances.
        norms_C: `[C]` norms of the updates.
        weights_C: `[C]` non-negative.
        along_C: `[C]` products <x_i, theta> when models theta + x_i are compared; None: updates.
        length: |theta|.
        xi: standard deviations in the first turn.
        xi_step: added each turn.
    """
    squared_CC, norms_C, weights_C = squared_CC.double().cpu(), norms_C.double().cpu(), weights_C.double().cpu()
    along_C = torch.zeros_like(norms_C) if along_C is None else along_C.double().cpu()
    keep_C = weights_C > 0
    away_C = torch.zeros_like(norms_C)
    for _ in range(len(norms_C) + 1):
        if not bool(keep_C.any()):
            break
        away_C = _distances_from_mean(squared_CC, norms_C, along_C, length, weights_C * keep_C)
        good = away_C[keep_C]
        middle, std = median(good), good.std(correction=0)
        # 1 - cos instead of cos: the same std, and small differences keep their digits
        outlier_C = away_C > middle + xi * std if good.mean() > middle else away_C < middle - xi * std
        dropped_C = keep_C & outlier_C & (std > 0)
        if not bool(dropped_C.any()) or bool((dropped_C == keep_C).all()):
            break
        keep_C = keep_C & ~dropped_C
        xi += xi_step
    return Similar(keep_C, 1 - away_C)


def _distances_from_mean(
    squared_CC: Tensor, norms_C: Tensor, along_C: Tensor, length: float, weights_C: Tensor
) -> Tensor:
    """`[C]` 1 - cos(theta + x_i, theta + sum_j a_j x_j), a the weights divided by their sum."""
    a_C = weights_C / weights_C.sum()
    inner = float(a_C @ squared_CC @ a_C) / 2
    squares_C = norms_C.square()
    excess_C = 2 * along_C + squares_C
    mean_excess = float(a_C @ excess_C) - inner
    models_C = (length**2 + excess_C).clamp(min=0).sqrt()
    mean_norm = max(0.0, length**2 + mean_excess) ** 0.5
    apart_C = (excess_C - mean_excess) / (models_C + mean_norm).clamp(min=1e-300)
    squared_C = (squared_CC @ a_C - inner).clamp(min=0)
    away_C = (squared_C - apart_C.square()).clamp(min=0) / (2 * models_C * mean_norm).clamp(min=1e-300)
    return torch.where(models_C * mean_norm > 0, away_C.clamp(max=2), 1.0)


def blocked(good_N: Tensor, bad_N: Tensor, bound: float = 0.95) -> Tensor:
    """`[N]` bool, P(p < 1/2) > bound under Beta(good, bad).

    Example:
        >>> blocked(torch.tensor([3.0, 3.0]), torch.tensor([8.0, 9.0]))
        tensor([False,  True])
    """
    from scipy.special import betainc

    return torch.from_numpy(betainc(good_N.double().cpu().numpy(), bad_N.double().cpu().numpy(), 0.5)) > bound


class Afa(Defense):
    """Removes rows unlike the weighted mean, weighs clients by how often they were good, and blocks the bad for ever.

    The weights are sample counts times alpha / (alpha + beta), counts of good and bad rounds that begin at 3. The bound lies on
    the side to which the mean leans: when the attackers are gone, honest extremes go.

    Attributes:
        of: whether models, as printed, or updates are compared.
        xi: standard deviations at which a row goes in the first turn.
        xi_step: added every turn.
        block: probability of being bad above which a client is blocked; five bad rounds give 0.945, six 0.967.
    """

    name: ClassVar[str] = "afa"
    cites: ClassVar[tuple[str, ...]] = ("munozgonzalez2019byzantine",)
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    of: Annotated[Literal["models", "updates"], Choice(("models", "updates"))] = "models"
    xi: Annotated[float, Tunable(0.5, 4)] = Field(default=2.0, gt=0)
    xi_step: float = Field(default=0.5, ge=0)
    block: float = Field(default=0.95, gt=0.5, lt=1)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Blocked and unlike rows go; the score is 1 - cos with the mean of the good rows."""
        clients_C = clients_of(updates_CD, context)
        good_N = state["good"].cpu().clone() if state else torch.full((population_of(updates_CD, context),), 3.0)
        bad_N = state["bad"].cpu().clone() if state else torch.full((population_of(updates_CD, context),), 3.0)
        free_C = ~blocked(good_N, bad_N, self.block)[clients_C]
        probability_C = (good_N / (good_N + bad_N))[clients_C]
        weights_C = context.weights_C.cpu().double() * probability_C
        geometry = geometry_of(updates_CD, context).trained
        theta_D, models = trained_model(context), self.of == "models"
        judged = afa(
            geometry.squared_distances,
            geometry.norms,
            weights_C * free_C,
            geometry.products(theta_D) if models else None,
            float(theta_D.double().norm()) if models else 0.0,
            self.xi,
            self.xi_step,
        )
        keep_C = free_C if len(free_C) < TOO_FEW else judged.keep_C
        good_N[clients_C[free_C & keep_C]] += 1
        bad_N[clients_C[free_C & ~keep_C]] += 1
        verdict = filtered(
            updates_CD,
            context,
            keep_C,
            scores_C=1 - judged.similarity_C + (~free_C) * 2.0,  # a blocked client is more suspicious than any other
            state={"good": good_N, "bad": bad_N},
            metrics={"blocked": float(blocked(good_N, bad_N, self.block).sum())},
        )
        return verdict._replace(weights_C=weights_C.to(context.weights_C))
