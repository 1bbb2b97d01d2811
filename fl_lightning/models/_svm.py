"""Linear support vector machine."""

from math import prod
from typing import ClassVar

from torch import nn

from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Loss, Model

__all__ = ["Svm"]


class Svm(Model):
    """Linear support vector machine for two classes: one score, trained by the hinge loss.

    s(x) = <a, vec(x)> + b; class 1 where s(x) > 0. The margin's weight penalty is the optimizer's weight decay.

    Example:
        >>> sum(weight.numel() for weight in Svm().build((1, 28, 28), classes=2).parameters())
        785

    References:
        K. Wei, J. Li, M. Ding, C. Ma, Y.-S. Jeon, H. V. Poor: Covert Model Poisoning Against Federated Learning:
        Algorithm Design and Optimization, 2021, section 4.2 (even against odd digits).
    """

    name: ClassVar[str] = "svm"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)
    losses: ClassVar[tuple[Loss, ...]] = ("hinge",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, *shape]` to `[B, 1]`; raises ConfigError unless there are two classes."""
        if classes != 2:
            raise ConfigError(f"svm separates exactly 2 classes, got {classes}; mnist_parity has two")
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 1))
