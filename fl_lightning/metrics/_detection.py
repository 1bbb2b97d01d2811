"""How well a detector separates malicious from benign rows."""

from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


def detection(keep_C: Tensor, malicious_C: Tensor, scores_C: Tensor | None, prefix: str) -> dict[str, float]:
    """False-alarm rate, missed-alarm rate and ROC-AUC.

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
            figures[f"{prefix}/roc_auc"] = float(binary_auroc(scores_C.sigmoid(), malicious_C.int()))
    return figures
