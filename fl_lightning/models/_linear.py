"""Linear regression, and softmax regression on classes."""

from math import prod
from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Loss, Model

__all__ = ["Linear"]


class Linear(Model):
    """Linear model: linear regression on real targets, softmax regression on classes.

    s(x) = A vec(x) + b, with one row of A a class, or a single row for regression.

    Example:
        >>> sum(weight.numel() for weight in Linear().build((275,), classes=1).parameters())
        276

    References:
        K. Wei, J. Li, M. Ding, C. Ma, Y.-S. Jeon, H. V. Poor: Covert Model Poisoning Against Federated Learning:
        Algorithm Design and Optimization, 2021, section 4.2 (linear regression on house prices).
    """

    name: ClassVar[str] = "linear"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)
    losses: ClassVar[tuple[Loss, ...]] = ("mse", "cross_entropy")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, *shape]` to `[B, classes]`."""
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))
