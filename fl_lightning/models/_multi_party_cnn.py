"""The network of the multi-party poisoning paper."""

from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["MultiPartyCnn"]


class MultiPartyCnn(Model):
    """Multi-party poisoning's CNN for MNIST: 5x5 convolutions 32 and 64, dense 3136-512-K; 1,663,370 parameters.

    The printed parameter count fixes the padding that the text leaves open: 2 for both convolutions. Each is followed
    by ReLU and a 2x2 max-pool.

    Example:
        >>> sum(weight.numel() for weight in MultiPartyCnn().build((1, 28, 28), classes=10).parameters())
        1663370

    References:
        Z. Chen, P. Tian, W. Liao, W. Yu: Towards multi-party targeted model poisoning attacks against federated
        learning systems, High-Confidence Computing 1(1), 2021, section 5.1.
    """

    name: ClassVar[str] = "multi_party_cnn"
    cites: ClassVar[tuple[str, ...]] = ("chen2021multiparty",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 4x4 pixels."""
        return cnn(shape, classes, channels=(32, 64), padding=(2, 2), hidden=(512,))
