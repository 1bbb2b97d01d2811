"""FoolsGold: clients whose updates, summed over the rounds, point the same way count as one attacker and lose their weight."""

import torch
from torch import Tensor


def foolsgold(cosines_CC: Tensor, kappa: float = 1.0) -> Tensor:
    """Weights between 0 and 1 from the cosines of the summed updates.

    With diagonal 0, m_i = max_j cos_ij + 1e-5; cos_ij <- cos_ij m_i / m_j where m_i < m_j (pardoning); v_i = 1 - max_j cos_ij in
    [0, 1], divided by the largest and cut at 0.99; weight = kappa (ln(v / (1 - v)) + 1/2) in [0, 1].

    Args:
        cosines_CC: `[C, C]`; the diagonal is not read.
        kappa: confidence, > 0.

    Returns:
        `[C]` float64; all 0 when nobody differs from the others.

    Example:
        >>> foolsgold(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        tensor([0., 0., 1.], dtype=torch.float64)
    """
    cosines_CC = cosines_CC.double().clone().fill_diagonal_(0)
    most_C = cosines_CC.amax(1) + 1e-5
    pardoned_CC = torch.where(most_C[:, None] < most_C, most_C[:, None] / most_C, 1.0)
    distinct_C = (1 - (cosines_CC * pardoned_CC).amax(1)).clamp(0, 1)
    # two copies of one row differ by no more than the rounding of their products
    distinct_C = torch.where(distinct_C > 1e-9, distinct_C, 0.0)
    if not bool(distinct_C.any()):
        return distinct_C
    share_C = (distinct_C / distinct_C.max()).clamp(max=0.99)
    return (kappa * (torch.log(share_C / (1 - share_C)) + 0.5)).clamp(0, 1)
