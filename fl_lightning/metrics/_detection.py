"""How well a detector separates malicious from benign rows."""

import math

from torch import Tensor


def detection(keep_C: Tensor, malicious_C: Tensor, scores_C: Tensor | None, prefix: str) -> dict[str, float]:
    """False-alarm rate, missed-alarm rate, ROC-AUC, and where the scores lie.

    `score_malicious`: the least suspicious malicious row; `score_benign`: the most suspicious benign one; `score_gap`: the first
    minus the second. Thresholds between the two separate without an error.

    Args:
        keep_C: `[C]` bool, rows that the detector lets pass.
        malicious_C: `[C]` bool, rows that were poisoned in this round.
        scores_C: `[C]` suspicion, larger = more suspicious, or None.
        prefix: such as `defense` or `defense/pdrr`.

    Returns:
        Rates by name; a rate whose denominator is 0 is left out.
    """
    figures = {}
    if bool((~malicious_C).any()):
        figures[f"{prefix}/false_alarm_rate"] = float((~keep_C[~malicious_C]).double().mean())
    if bool(malicious_C.any()):
        figures[f"{prefix}/missed_alarm_rate"] = float(keep_C[malicious_C].double().mean())
        if scores_C is not None and not bool(malicious_C.all()):
            figures[f"{prefix}/roc_auc"] = roc_auc(scores_C, malicious_C)
            bad, good = float(scores_C[malicious_C].min()), float(scores_C[~malicious_C].max())
            if math.isfinite(bad) and math.isfinite(good):
                figures |= {f"{prefix}/score_malicious": bad, f"{prefix}/score_benign": good}
                figures[f"{prefix}/score_gap"] = bad - good
    return figures


def roc_auc(scores_C: Tensor, malicious_C: Tensor) -> float:
    """Probability that a malicious row looks more suspicious than a benign one, ties counting half.

    Compares the scores themselves: torchmetrics squashes scores outside of [0, 1] by a sigmoid, which makes large ones equal.
    """
    bad_M1, good_1B = scores_C[malicious_C, None], scores_C[None, ~malicious_C]
    return float((bad_M1 > good_1B).double().mean() + (bad_M1 == good_1B).double().mean() / 2)
