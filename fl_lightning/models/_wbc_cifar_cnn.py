"""FL-WBC's network for CIFAR-10."""

from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["WbcCifarCnn"]


class WbcCifarCnn(Model):
    """FL-WBC's CNN for CIFAR-10: 5x5 convolutions 6 and 16 with 3x3 max-pools, dense 120-84-K; 62,006 parameters.

    The table leaves the pooling's stride and padding open. Chosen here: stride 2, padding 1, so that 16 x 5 x 5 = 400
    features reach the dense layers, as many as in the authors' released code (which pools 2x2 instead).

    Example:
        >>> sum(weight.numel() for weight in WbcCifarCnn().build((3, 32, 32), classes=10).parameters())
        62006

    References:
        J. Sun, A. Li, L. DiValentin, A. Hassanzadeh, Y. Chen, H. Li: FL-WBC: Enhancing Robustness against Model
        Poisoning Attacks in Federated Learning from a Client Perspective, NeurIPS 2021, table 3.
    """

    name: ClassVar[str] = "wbc_cifar_cnn"
    cites: ClassVar[tuple[str, ...]] = ("sun2021flwbc",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 13x13 pixels."""
        return cnn(shape, classes, channels=(6, 16), padding=(0, 0), pool=3, hidden=(120, 84))
