"""Fashion-MNIST.

References:
    H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.
    arXiv:1708.07747, 2017.
"""

from typing import ClassVar

from fl_lightning.data._catalogue import FASHION_MNIST
from fl_lightning.data._dataset import Samples
from fl_lightning.data._files import Files, Folder
from fl_lightning.data._idx import read_images
from fl_lightning.data._images import ImageData


class FashionMnist(ImageData):
    """70 000 pictures of clothes, 28x28 grey pixels, 10 classes."""

    name: ClassVar[str] = "fashion_mnist"
    cites: ClassVar[tuple[str, ...]] = ("xiao2017fashion",)
    places: ClassVar[tuple[Files | Folder, ...]] = (FASHION_MNIST,)
    sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)
    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    def images(self) -> tuple[Samples, Samples]:
        """The four idx files."""
        return read_images(FASHION_MNIST)
