"""Per-sample losses and what a model's scores mean under each of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Task
from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Loss, Model
from fl_lightning.registry import Component

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Focal",
    "Hinge",
    "Huber",
    "Mse",
    "SampleLoss",
    "confidence",
    "cross_entropy",
    "focal",
    "hinge",
    "huber",
    "loss_for",
    "mse",
    "predict",
]


def cross_entropy(scores_BK: Tensor, y_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Negative log-likelihood of the right class, or its mean under `[B, K]` probabilities of the classes; `[B]`.

    With label smoothing $\varepsilon$ the right class has probability $1 - \varepsilon + \varepsilon / K$ and every other
    $\varepsilon / K$.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0]])
        >>> [round(float(cross_entropy(scores, torch.tensor([0]), e)), 4) for e in (0.0, 0.2)]
        [0.1269, 0.3269]
    """
    return F.cross_entropy(scores_BK, y_B, reduction="none", label_smoothing=label_smoothing)


def focal(scores_BK: Tensor, y_B: Tensor, gamma: float) -> Tensor:
    r"""$-(1 - p_y)^\gamma \log p_y$, or its mean under `[B, K]` probabilities of the classes; `[B]`.

    Args:
        scores_BK: `[B, K]` scores.
        y_B: `[B]` classes, or `[B, K]` probabilities.
        gamma: focus on samples that are not yet right, >= 0; 0: cross-entropy.

    Example:
        >>> round(float(focal(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), gamma=2.0)), 4)  # log 2 / 4
        0.1733
    """
    log_BK = scores_BK.log_softmax(-1)
    # 1 - p from the other classes: near p = 1 the difference would lose all digits
    values_BK = -(-torch.expm1(log_BK)).clamp(min=torch.finfo(log_BK.dtype).tiny).pow(gamma) * log_BK
    if y_B.is_floating_point():
        return (y_B * values_BK).sum(-1)
    return values_BK.gather(-1, y_B.unsqueeze(-1)).squeeze(-1)


def hinge(scores_B1: Tensor, y_B: Tensor) -> Tensor:
    """`max(0, 1 - s (2 y - 1))` for classes 0 and 1, `[B]`."""
    return torch.clamp(1 - scores_B1.squeeze(-1) * (2 * y_B - 1), min=0)


def mse(scores_B1: Tensor, y_B: Tensor) -> Tensor:
    """Squared error, `[B]`."""
    return (scores_B1.squeeze(-1) - y_B).square()


def huber(scores_B1: Tensor, y_B: Tensor, delta: float) -> Tensor:
    r"""$r^2 / 2$ where the residual $|r| \le \delta$, else $\delta (|r| - \delta / 2)$; `[B]`.

    Example:
        >>> huber(torch.tensor([[0.5], [3.0]]), torch.zeros(2), delta=1.0)
        tensor([0.1250, 2.5000])
    """
    return F.huber_loss(scores_B1.squeeze(-1), y_B, reduction="none", delta=delta)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "hinge": hinge, "mse": mse}
"""The plain loss of each form: what a model's scores mean."""


class SampleLoss(Component, ABC):
    """What training makes small, and what attackers, defenses and `global/loss` measure with.

    Attributes:
        form: what scores mean under it: `cross_entropy`, one score a class; `hinge`, one score whose sign is the class; `mse`,
            one score that is the prediction. A model trains with the forms in its `losses`.
    """

    form: ClassVar[Loss] = "cross_entropy"

    @abstractmethod
    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """`[B]` one loss a sample, of `[B, K]` scores and `[B]` targets (of class scores also `[B, K]` probabilities)."""


class CrossEntropy(SampleLoss):
    """Cross-entropy.

    Attributes:
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    name: ClassVar[str] = "cross_entropy"
    cites: ClassVar[tuple[str, ...]] = ("szegedy2016rethinking",)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """See `cross_entropy`."""
        return cross_entropy(scores_BK, y_B, self.label_smoothing)


class Focal(SampleLoss):
    """The focal loss, for classes of which some are rare.

    Attributes:
        gamma: focus on samples that are not yet right.
    """

    name: ClassVar[str] = "focal"
    cites: ClassVar[tuple[str, ...]] = ("lin2017focal",)
    gamma: float = Field(default=2.0, ge=0)

    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """See `focal`."""
        return focal(scores_BK, y_B, self.gamma)


class Hinge(SampleLoss):
    """The hinge loss of two classes."""

    name: ClassVar[str] = "hinge"
    form: ClassVar[Loss] = "hinge"

    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """See `hinge`."""
        return hinge(scores_BK, y_B)


class Mse(SampleLoss):
    """The squared error."""

    name: ClassVar[str] = "mse"
    form: ClassVar[Loss] = "mse"

    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """See `mse`."""
        return mse(scores_BK, y_B)


class Huber(SampleLoss):
    """Huber's loss: squared errors near 0, absolute ones beyond.

    Attributes:
        delta: where the one becomes the other, in units of the target.
    """

    name: ClassVar[str] = "huber"
    form: ClassVar[Loss] = "mse"
    cites: ClassVar[tuple[str, ...]] = ("huber1964robust",)
    delta: float = Field(default=1.0, gt=0)

    def __call__(self, scores_BK: Tensor, y_B: Tensor) -> Tensor:
        """See `huber`."""
        return huber(scores_BK, y_B, self.delta)


PLAIN: dict[Loss, SampleLoss] = {"cross_entropy": CrossEntropy(), "hinge": Hinge(), "mse": Mse()}


def predict(scores_BK: Tensor) -> Tensor:
    """`[B]` predicted classes; one score column means the sign of a binary classifier."""
    if scores_BK.shape[-1] == 1:
        return (scores_BK.squeeze(-1) > 0).long()
    return scores_BK.argmax(-1)


def confidence(scores_BK: Tensor, y_B: Tensor) -> Tensor:
    """`[B]` probability of class y under the softmax; needs at least two score columns."""
    return scores_BK.softmax(-1).gather(-1, y_B.unsqueeze(-1)).squeeze(-1)


def loss_for(model: Model, task: Task, classes: int, loss: SampleLoss | None = None) -> SampleLoss:
    """The loss that was chosen, else the plain one of the first of the model's forms that fits the data.

    Args:
        model: the architecture.
        task: classification or regression.
        classes: number of classes K.
        loss: what was chosen; None: nothing.

    Raises:
        ConfigError: the model cannot be trained on this task, or not with this loss.
    """
    fits: dict[Loss, Any] = {
        "cross_entropy": task == "classification",
        "hinge": task == "classification" and classes == 2,
        "mse": task == "regression",
    }
    possible = [form for form in model.losses if fits[form]]
    if not possible:
        needs = " or ".join(model.losses)
        raise ConfigError(f"{model.name!r} trains with {needs}, unfit for {task} with {classes} classes", "model")
    if loss is None:
        return PLAIN[possible[0]]
    if loss.form not in possible:
        raise ConfigError(
            f"{loss.name} is a loss of the form {loss.form}, {model.name!r} on {task} needs {' or '.join(possible)}",
            "loss",
        )
    return loss
