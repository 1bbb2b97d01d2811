"""How good the global model is, for its users and for the attacker."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.regression import mean_squared_error

from fl_lightning.attacks import Goal
from fl_lightning.models import LOSSES, FlatNetwork, confidence, predict


def evaluate(flat: FlatNetwork, global_D: Tensor, goal: Goal, classes: int, attacked: bool) -> dict[str, float]:
    """Figures of a global model.

    Classification: `global/accuracy` and `global/loss` on the clean test set. Regression: `global/loss` and
    `global/normalized_cost` = MSE / Var(y). With an attack also `attack/success`, the share of the success samples that get
    the wished label (for an untargeted attack the error rate), and `attack/confidence`, the mean probability of the
    wished label (where the model gives probabilities).

    Args:
        flat: architecture and loss.
        global_D: `[D]` parameters.
        goal: the clean test set and the attacker's success samples.
        classes: number of classes K, 1 for regression.
        attacked: whether the attacker's figures are wanted.
    """
    scores = flat.scores(global_D, goal.clean.x)
    y = goal.clean.y
    figures = {"global/loss": float(LOSSES[flat.loss](scores, y).double().mean())}
    if y.is_floating_point():
        error = float(mean_squared_error(scores.squeeze(-1), y))
        figures["global/normalized_cost"] = error / float(y.var(correction=0))
        return figures
    figures["global/accuracy"] = _accuracy(scores, y, classes)
    if not attacked:
        return figures
    if goal.success is None:
        figures["attack/success"] = 1 - figures["global/accuracy"]
    elif len(goal.success):
        wished = flat.scores(global_D, goal.success.x)
        figures["attack/success"] = _accuracy(wished, goal.success.y, classes)
        if flat.loss == "cross_entropy":
            figures["attack/confidence"] = float(confidence(wished, goal.success.y).mean())
    return figures


def _accuracy(scores: Tensor, y: Tensor, classes: int) -> float:
    # Micro accuracy over classes: torchmetrics counts in int64, so 10,000 hits are exact.
    return float(multiclass_accuracy(predict(scores), y, max(classes, 2), average="micro").to(torch.float64))
