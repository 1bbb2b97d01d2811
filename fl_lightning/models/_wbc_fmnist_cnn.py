"""FL-WBC's network for Fashion-MNIST."""

from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["WbcFmnistCnn"]


class WbcFmnistCnn(Model):
    """FL-WBC's CNN for Fashion-MNIST: 5x5 convolutions 16 and 32, dense 1568-K; 28,938 parameters.

    The table prints neither padding nor pooling; as in the authors' released code both convolutions are padded by 2 and
    followed by ReLU and a 2x2 max-pool.

    Example:
        >>> sum(weight.numel() for weight in WbcFmnistCnn().build((1, 28, 28), classes=10).parameters())
        28938

    References:
        J. Sun, A. Li, L. DiValentin, A. Hassanzadeh, Y. Chen, H. Li: FL-WBC: Enhancing Robustness against Model
        Poisoning Attacks in Federated Learning from a Client Perspective, NeurIPS 2021, table 3.
    """

    name: ClassVar[str] = "wbc_fmnist_cnn"
    cites: ClassVar[tuple[str, ...]] = ("sun2021flwbc",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 4x4 pixels."""
        return cnn(shape, classes, channels=(16, 32), padding=(2, 2))
