"""MNIST.

References:
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document recognition. Proceedings of
    the IEEE 86(11), 1998.
"""

from typing import ClassVar

from fl_lightning.data._catalogue import MNIST
from fl_lightning.data._dataset import Samples
from fl_lightning.data._files import Files, Folder
from fl_lightning.data._idx import read_images
from fl_lightning.data._images import ImageData


class Mnist(ImageData):
    """70 000 handwritten digits, 28x28 grey pixels, 10 classes."""

    name: ClassVar[str] = "mnist"
    cites: ClassVar[tuple[str, ...]] = ("lecun1998gradient",)
    places: ClassVar[tuple[Files | Folder, ...]] = (MNIST,)
    sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)
    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    def images(self) -> tuple[Samples, Samples]:
        """The four idx files."""
        return read_images(MNIST)
