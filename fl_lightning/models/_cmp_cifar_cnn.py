"""CMP's network for CIFAR-10."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["CmpCifarCnn"]


class CmpCifarCnn(Model):
    """CMP's CNN for CIFAR-10: two convolutions with dropout; 545,098 parameters.

    The paper says no more than "2 convolutional layers with dropout". Chosen here: 3x3 convolutions 32 and 64, padded
    by 1, each with ReLU and a 2x2 max-pool, dense 4096-128-K, dropout in front of both dense layers.

    Attributes:
        dropout: probability that an activation is dropped, in [0, 1). The masks are drawn per client by `draw_masks`.

    Example:
        >>> sum(weight.numel() for weight in CmpCifarCnn().build((3, 32, 32), classes=10).parameters())
        545098

    References:
        K. Wei, J. Li, M. Ding, C. Ma, Y.-S. Jeon, H. V. Poor: Covert Model Poisoning Against Federated Learning:
        Algorithm Design and Optimization, 2021, section 4.2.
    """

    name: ClassVar[str] = "cmp_cifar_cnn"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)

    dropout: float = Field(default=0.25, ge=0, lt=1)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 4x4 pixels."""
        return cnn(shape, classes, kernel=3, channels=(32, 64), padding=(1, 1), hidden=(128,), dropout=self.dropout)
