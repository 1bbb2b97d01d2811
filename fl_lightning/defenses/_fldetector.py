"""FLDetector: an honest client's next update can be predicted from its last and the server's; who is surprising goes."""

import torch
from torch import Tensor

from fl_lightning.defenses._clusters import errors_within, gap_statistic, two_means


def lbfgs_product(steps_WD: Tensor, changes_WD: Tensor, v_D: Tensor) -> Tensor | None:
    """B v with the compact L-BFGS estimate of the Hessian; None where it is not defined.

    sigma = <y_m, s_m> / <s_m, s_m>; B v = sigma v - [sigma S, Y] [[sigma S^T S, L], [L^T, -E]]^-1 [sigma S^T v; Y^T v] with
    L the strict lower part of S^T Y and E its diagonal.

    Args:
        steps_WD: `[W, D]` S, differences of the global model, oldest first.
        changes_WD: `[W, D]` Y, differences of the aggregated update over the same rounds.
        v_D: `[D]`.
    """
    if not len(steps_WD):
        return None
    S, Y, v = steps_WD.double(), changes_WD.double(), v_D.double()
    length = float(S[-1] @ S[-1])
    sigma = float(Y[-1] @ S[-1]) / length if length > 0 else 0.0
    if sigma == 0:
        return None
    cross = S @ Y.T
    lower, diagonal = cross.tril(-1), torch.diag(cross.diagonal())
    middle = torch.cat([torch.cat([sigma * S @ S.T, lower], 1), torch.cat([lower.T, -diagonal], 1)])
    right = torch.cat([sigma * (S @ v), Y @ v])
    solved, failed = torch.linalg.solve_ex(middle, right)
    if int(failed) or not bool(solved.isfinite().all()):
        return None
    w = len(S)
    product_D: Tensor = sigma * v - (sigma * solved[:w]) @ S - solved[w:] @ Y
    return product_D.to(v_D.dtype)


def surprises(updates_CD: Tensor, predicted_CD: Tensor) -> Tensor:
    """`[C]` float64, |x_i - predicted_i|, summing to 1 over the rows (all 0 when every prediction is exact).

    Example:
        >>> surprises(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    distances_C: Tensor = torch.linalg.vector_norm(updates_CD - predicted_CD, dim=1, dtype=torch.float64)
    return distances_C / distances_C.sum().clamp(min=1e-300)


def surprising(scores_C: Tensor, generator: torch.Generator, k_max: int = 7) -> Tensor:
    """`[C]` bool on the CPU, the group of larger scores where the gap statistic sees more than one group; else nobody.

    Args:
        scores_C: `[C]` mean surprise of the clients.
        generator: of the gap statistic's references.
        k_max: largest number of groups looked for.
    """
    scores_C = scores_C.double().cpu()
    nobody_C = torch.zeros(len(scores_C), dtype=torch.bool)
    if len(scores_C) < 3:
        return nobody_C
    groups = gap_statistic(scores_C[:, None], k_max, lambda points, k: errors_within(points[:, 0], k), generator)
    return two_means(scores_C).upper_C if groups > 1 else nobody_C
