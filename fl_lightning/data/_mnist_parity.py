"""MNIST with the two classes even (0) and odd (1).

References:
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document recognition. Proceedings of
    the IEEE 86(11), 1998.
"""

from dataclasses import replace
from typing import ClassVar

from fl_lightning.data._catalogue import MNIST
from fl_lightning.data._dataset import Samples
from fl_lightning.data._files import Files, Folder
from fl_lightning.data._idx import read_images
from fl_lightning.data._images import ImageData


class MnistParity(ImageData):
    """MNIST with the two classes even (0) and odd (1)."""

    name: ClassVar[str] = "mnist_parity"
    cites: ClassVar[tuple[str, ...]] = ("lecun1998gradient",)
    places: ClassVar[tuple[Files | Folder, ...]] = (MNIST,)
    sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)
    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    classes: ClassVar[int] = 2

    def images(self) -> tuple[Samples, Samples]:
        """MNIST's images, each label modulo 2."""
        train, test = read_images(MNIST)
        return replace(train, y=train.y % 2), replace(test, y=test.y % 2)
