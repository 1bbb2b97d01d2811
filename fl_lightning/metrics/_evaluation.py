"""How good the global model is, for its users and for the attacker."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.regression import mean_squared_error

from fl_lightning.attacks import Goal
from fl_lightning.metrics._torchmetrics import Metric
from fl_lightning.models import FlatNetwork, confidence, predict

MOST_NAMED = 50
"""Owners that get a metric each; of more only the worst and the mean are reported."""
UNFIT = re.compile(r"[^\w .:-]")
"""What a metric's name cannot hold."""


def evaluate(
    flat: FlatNetwork,
    global_D: Tensor,
    goal: Goal,
    classes: int,
    attacked: bool,
    owners: Sequence[str] = (),
    chosen: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Figures of a global model.

    Classification: `global/accuracy` and `global/loss` on the clean test set. Regression: `global/loss` and
    `global/normalized_cost` = MSE / Var(y). With an attack also `attack/success`, the share of the success samples that get
    the wished label (for an untargeted attack the error rate), and `attack/confidence`, the mean probability of the
    wished label (where the model gives probabilities). Of a trigger that attackers share out, also `attack/success_part_<n>`.

    Args:
        flat: architecture and loss.
        global_D: `[D]` parameters.
        goal: the clean test set and the attacker's success samples.
        classes: number of classes K, 1 for regression.
        attacked: whether the attacker's figures are wanted.
        owners: names of the owners of the clean test samples; then their accuracies are reported, too.
        chosen: label -> further figures on the clean test set.
    """
    scores = flat.scores(global_D, goal.clean.x)
    y = goal.clean.y
    figures = {"global/loss": float(flat.sample_loss(scores, y).double().mean())}
    figures |= {f"global/{label}": one.compute(scores, y, classes) for label, one in (chosen or {}).items()}
    if y.is_floating_point():
        error = float(mean_squared_error(scores.squeeze(-1), y))
        figures["global/normalized_cost"] = error / float(y.var(correction=0))
        return figures
    figures["global/accuracy"] = _accuracy(scores, y, classes)
    if owners and goal.clean.owner is not None:
        figures |= by_owner(predict(scores) == y, goal.clean.owner, owners)
    if not attacked:
        return figures
    if goal.success is None:
        figures["attack/success"] = 1 - figures["global/accuracy"]
    elif len(goal.success):
        wished = flat.scores(global_D, goal.success.x)
        figures["attack/success"] = _accuracy(wished, goal.success.y, classes)
        if flat.loss == "cross_entropy":
            figures["attack/confidence"] = float(confidence(wished, goal.success.y).mean())
        figures |= _by_part(flat, global_D, goal, classes)
    return figures


def _by_part(flat: FlatNetwork, global_D: Tensor, goal: Goal, classes: int) -> dict[str, float]:
    """Success of each part of a trigger that attackers share out."""
    if not goal.distributed or goal.stamps is None or goal.counted is None or goal.success is None:
        return {}
    plain = goal.clean.x[goal.counted]
    return {
        f"attack/success_part_{number}": _accuracy(flat.scores(global_D, stamp(plain)), goal.success.y, classes)
        for number, stamp in enumerate(goal.stamps.parts)
    }


def by_owner(right_n: Tensor, owner_n: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Accuracy on the test samples of each owner: the worst, the mean over owners, and each where they are few.

    Args:
        right_n: `[n]` bool, which samples were classified rightly.
        owner_n: `[n]` the number of each sample's owner.
        names: of the owners, by number.

    Example:
        >>> by_owner(torch.tensor([True, True, False, True]), torch.tensor([0, 0, 1, 1]), ["north", "south"])
        {'owner/worst': 0.5, 'owner/mean': 0.75, 'owner/accuracy/north': 1.0, 'owner/accuracy/south': 0.5}
    """
    counts = owner_n.bincount(minlength=len(names)).double()
    hits = owner_n.bincount(right_n.double(), minlength=len(names))
    tested = torch.nonzero(counts).flatten()
    shares = (hits[tested] / counts[tested]).tolist()
    figures = {"owner/worst": min(shares), "owner/mean": sum(shares) / len(shares)}
    if len(shares) <= MOST_NAMED:
        for number, share in zip(tested.tolist(), shares, strict=True):
            figures[f"owner/accuracy/{UNFIT.sub('_', names[number])}"] = share
    return figures


def _accuracy(scores: Tensor, y: Tensor, classes: int) -> float:
    # Micro accuracy over classes: torchmetrics counts in int64, so 10,000 hits are exact.
    return float(multiclass_accuracy(predict(scores), y, max(classes, 2), average="micro").to(torch.float64))
