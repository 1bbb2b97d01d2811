"""PDRR's network for FEMNIST."""

from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["PdrrCnn"]


class PdrrCnn(Model):
    """PDRR's CNN for FEMNIST: 5x5 convolutions 32 and 64, dense 3136-2048-K; 6,603,710 parameters for 62 classes.

    832 + 51,264 + 6,424,576 + 127,038 parameters; the printed count fixes the padding that the text leaves open: 2 for
    both convolutions. Each is followed by ReLU and a 2x2 max-pool, the hidden dense layer by ReLU.

    Example:
        >>> sum(weight.numel() for weight in PdrrCnn().build((1, 28, 28), classes=62).parameters())
        6603710

    References:
        S. Lu, R. Li, X. Chen, Y. Ma: Defense against Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning, Frontiers of Computer Science 16(6), 2022, section 5.1.
    """

    name: ClassVar[str] = "pdrr_cnn"
    cites: ClassVar[tuple[str, ...]] = ("lu2022defense",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 4x4 pixels."""
        return cnn(shape, classes, channels=(32, 64), padding=(2, 2), hidden=(2048,))
