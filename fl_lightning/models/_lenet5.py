"""LeNet-5."""

from typing import ClassVar

from torch import nn

from fl_lightning.models._base import Model
from fl_lightning.models._layers import cnn

__all__ = ["Lenet5"]


class Lenet5(Model):
    """LeNet-5 with ReLU and max-pooling: 5x5 convolutions 6 and 16, dense 120-84-K.

    The first convolution is padded by 2 (the original pads its 28x28 digits to 32x32): 61,706 parameters for 28x28x1.
    The padding stays for larger images: 83,126 parameters for 32x32x3.

    Example:
        >>> sum(weight.numel() for weight in Lenet5().build((1, 28, 28), classes=10).parameters())
        61706

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings
        of the IEEE 86(11), 1998. Used by X. Zhou, M. Xu, Y. Wu, N. Zheng: Deep Model Poisoning Attack on Federated
        Learning, Future Internet 13(3), 2021, table 2.
    """

    name: ClassVar[str] = "lenet5"
    cites: ClassVar[tuple[str, ...]] = ("lecun1998gradient",)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError below 12x12 pixels."""
        return cnn(shape, classes, channels=(6, 16), padding=(2, 0), hidden=(120, 84))
