"""Multi-layer perceptron."""

from math import prod
from typing import ClassVar

from pydantic import PositiveInt
from torch import nn

from fl_lightning.models._base import Loss, Model
from fl_lightning.models._layers import dense

__all__ = ["Mlp"]


class Mlp(Model):
    """Multi-layer perceptron: dense layers with ReLU between them.

    Attributes:
        hidden: widths of the hidden layers, each at least 1; none gives softmax regression. The paper names ReLU and
            softmax but no width; 128 is chosen here.

    Example:
        >>> sum(weight.numel() for weight in Mlp(hidden=(128,)).build((1, 28, 28), classes=10).parameters())
        101770

    References:
        K. Wei, J. Li, M. Ding, C. Ma, Y.-S. Jeon, H. V. Poor: Covert Model Poisoning Against Federated Learning:
        Algorithm Design and Optimization, 2021, section 4.2.
    """

    name: ClassVar[str] = "mlp"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)
    losses: ClassVar[tuple[Loss, ...]] = ("cross_entropy", "mse")

    hidden: tuple[PositiveInt, ...] = (128,)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, *shape]` to `[B, classes]`."""
        return nn.Sequential(nn.Flatten(), *dense((prod(shape), *self.hidden, classes)))
