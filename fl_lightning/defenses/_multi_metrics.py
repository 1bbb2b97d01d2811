"""Multi-metrics: Manhattan norm, Euclidean norm and cosine judge a row together, by how far it lies from the others in each.

References:
    Huang, Li, Chen, Shi, Gao, "Multi-metrics adaptively identifies backdoors in Federated learning", ICCV 2023,
    section 4 (`printed`) and the authors' program (`program`); the two keep different rows.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._angles import model_norms, turns
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of, trained_of
from fl_lightning.defenses._spread import count
from fl_lightning.defenses._verdicts import filtered, trained_model
from fl_lightning.registry import Choice, Tunable


def multi_metrics(differences_CF: Tensor) -> Tensor:
    """Squared scores t_i^T Cov(t)^+ t_i of the rows' summed differences in each metric; large = suspicious.

    Cov is taken with 1 / (C - 1) and inverted where it can be: columns that are equal for all rows tell nothing. The columns are
    scaled to unit deviation first, which leaves the score of a regular Cov as it is.

    Args:
        differences_CF: `[C, F]` t_if = sum_j |m_if - m_jf| for metric f.

    Returns:
        `[C]` float64.
    """
    t_CF = differences_CF.double().cpu()
    if len(t_CF) < 2:
        return torch.zeros(len(t_CF), dtype=torch.float64)
    std_F = t_CF.std(0)
    telling_F = std_F > 1e-12 * t_CF.abs().amax(0)
    scaled_CF = t_CF[:, telling_F] / std_F[telling_F]
    if not scaled_CF.shape[1]:
        return torch.zeros(len(t_CF), dtype=torch.float64)
    centred_CF = scaled_CF - scaled_CF.mean(0)
    covariance_FF = centred_CF.T @ centred_CF / (len(t_CF) - 1)
    inverse_FF = torch.linalg.pinv(covariance_FF, hermitian=True, rtol=1e-12)
    scores_C: Tensor = ((scaled_CF @ inverse_FF) * scaled_CF).sum(1).clamp(min=0)
    return scores_C


def printed_metrics(manhattan_C: Tensor, norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C, 3]` t of the paper: summed differences of |x_i|_1, |x_i|_2 and cos(theta + x_i, theta).

    Args:
        manhattan_C: `[C]` sums of the rows' absolute entries.
        norms_C: `[C]` Euclidean norms.
        along_C: `[C]` products <x_i, theta>.
        length: |theta|.
    """
    metrics_C3 = torch.stack([manhattan_C.double(), norms_C.double(), turns(norms_C, along_C, length)], dim=1)
    return (metrics_C3[:, None] - metrics_C3).abs().sum(1)


def program_metrics(distances_CC: Tensor, manhattan_CC: Tensor, models_C: Tensor) -> Tensor:
    """`[C, 3]` t of the authors' program: sums over j of (1 - cos_ij)^2, |x_i - x_j|_1, |m_i - m_j| of whole models.

    Args:
        distances_CC: `[C, C]` 1 - cos of the models.
        manhattan_CC: `[C, C]` Manhattan distances.
        models_C: `[C]` norms of the models.
    """
    lengths_CC = (models_C[:, None] - models_C).abs()
    return torch.stack([distances_CC.square().sum(1), manhattan_CC.double().sum(1), lengths_CC.sum(1)], dim=1)


class MultiMetrics(Defense):
    """Keeps the rows whose Manhattan norm, Euclidean norm and cosine are together most like the others'.

    Attributes:
        keep_share: share of the rows that stay, at least one row.
        form: `printed`, the paper's metrics of updates, or `program`, those of the authors' program, of whole models.
    """

    name: ClassVar[str] = "multi_metrics"
    cites: ClassVar[tuple[str, ...]] = ("huang2023multi",)

    keep_share: Annotated[float, Tunable(0.1, 0.9)] = Field(default=0.3, gt=0, le=1)
    form: Annotated[Literal["printed", "program"], Choice(("printed", "program"))] = "printed"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All but the share of lowest scores go."""
        geometry, theta_D = geometry_of(updates_CD, context).trained, trained_model(context)
        rows_CD, length = trained_of(updates_CD, context), float(theta_D.double().norm())
        norms_C, along_C = geometry.norms, geometry.products(theta_D)
        if self.form == "printed":
            manhattan_C = torch.linalg.vector_norm(rows_CD, ord=1, dim=1, dtype=torch.float64).cpu()
            differences_C3 = printed_metrics(manhattan_C, norms_C, along_C, length)
        else:
            manhattan_CC = torch.cdist(rows_CD, rows_CD, p=1).cpu()
            models_C = model_norms(norms_C, along_C, length)
            differences_C3 = program_metrics(geometry.model_cosine_distances(theta_D), manhattan_CC, models_C)
        scores_C = multi_metrics(differences_C3).nan_to_num(nan=0.0)
        order = scores_C.sort(stable=True).indices
        keep_C = torch.zeros(len(updates_CD), dtype=torch.bool)
        keep_C[order[: count(self.keep_share, len(order))]] = True
        return filtered(updates_CD, context, keep_C, scores_C=scores_C.sqrt())
