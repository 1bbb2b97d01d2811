"""Covert model poisoning without knowledge: Algorithm 2, a step size that follows what the server adopted.

References:
    Wei, Li, Ding, Ma, Jeon, Poor, "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", 2021,
    section 3.5, Algorithm 2.
"""

from torch import Tensor


def adopted(uploaded_D: Tensor, before_D: Tensor, after_D: Tensor, closeness: float, eps: float) -> bool:
    """Whether the server moved to the uploaded model: ||theta^ - theta^t|| <= xi the round after.

    xi = eps + closeness ||theta^ - theta^{t-1}||. Corrected here: theta^ is the model uploaded in the round before (line 5 of
    Algorithm 2 compares with one that is not crafted yet). The paper leaves xi open. A rule that selects a row adopts the
    crafted model or one of its copies (distance 0 or eps); a rule that mixes coordinates never does, so that only a threshold
    relative to the crafted move can work: at closeness 1 the server came closer to the crafted model than it was.

    Args:
        uploaded_D: `[D]` the model that the server would have had by adopting the crafted row.
        before_D: `[D]` the global model that it was crafted from.
        after_D: `[D]` the global model broadcast next.
        closeness: xi relative to the crafted move.
        eps: distance of the copies.
    """
    return float((uploaded_D - after_D).norm()) <= eps + closeness * float((uploaded_D - before_D).norm())


def next_step(eta: float, hit: bool, growth: float, caution: float) -> float:
    """Grow by `growth` after a hit, shrink by `growth ** caution` after a miss; the printed rule has caution 1.

    The step settles where a share caution / (1 + caution) of the rounds are hits: half of them with equal factors, during
    the other half of which the honest clients undo the attack.

    Example:
        >>> round(next_step(next_step(1.0, True, 1.1, 1.0), False, 1.1, 1.0), 12)
        1.0
    """
    return eta * (growth if hit else growth**-caution)
