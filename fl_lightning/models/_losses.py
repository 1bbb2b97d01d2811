"""Per-sample losses and what a model's scores mean under each of them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.data import Task
from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Loss, Model

__all__ = ["LOSSES", "SampleLoss", "confidence", "cross_entropy", "hinge", "loss_for", "mse", "predict"]


class SampleLoss(Protocol):
    """Scores `[B, K]` and targets `[B]` (for `cross_entropy` also probabilities `[B, K]`) to losses `[B]`."""

    def __call__(self, scores_BK: Tensor, y_B: Tensor, /) -> Tensor:
        """One loss a sample."""


def cross_entropy(scores_BK: Tensor, y_B: Tensor) -> Tensor:
    """Negative log-likelihood of the right class, or its mean under `[B, K]` probabilities of the classes; `[B]`."""
    return F.cross_entropy(scores_BK, y_B, reduction="none")


def hinge(scores_B1: Tensor, y_B: Tensor) -> Tensor:
    """`max(0, 1 - s (2 y - 1))` for classes 0 and 1, `[B]`."""
    return torch.clamp(1 - scores_B1.squeeze(-1) * (2 * y_B - 1), min=0)


def mse(scores_B1: Tensor, y_B: Tensor) -> Tensor:
    """Squared error, `[B]`."""
    return (scores_B1.squeeze(-1) - y_B).square()


LOSSES: dict[Loss, SampleLoss] = {"cross_entropy": cross_entropy, "hinge": hinge, "mse": mse}


def predict(scores_BK: Tensor) -> Tensor:
    """`[B]` predicted classes; one score column means the sign of a binary classifier."""
    if scores_BK.shape[-1] == 1:
        return (scores_BK.squeeze(-1) > 0).long()
    return scores_BK.argmax(-1)


def confidence(scores_BK: Tensor, y_B: Tensor) -> Tensor:
    """`[B]` probability of class y under the softmax; needs at least two score columns."""
    return scores_BK.softmax(-1).gather(-1, y_B.unsqueeze(-1)).squeeze(-1)


def loss_for(model: Model, task: Task, classes: int) -> Loss:
    """The first of the model's losses that fits the data.

    Raises:
        ConfigError: the model cannot be trained on this task.
    """
    fits: dict[Loss, bool] = {
        "cross_entropy": task == "classification",
        "hinge": task == "classification" and classes == 2,
        "mse": task == "regression",
    }
    for loss in model.losses:
        if fits[loss]:
            return loss
    needs = " or ".join(model.losses)
    raise ConfigError(f"{model.name!r} trains with {needs}, unfit for {task} with {classes} classes", "model")
