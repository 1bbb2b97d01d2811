"""Scikit-learn's bundled 8x8 scans of handwritten digits: real data that needs no file at all.

References:
    E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.
"""

from typing import ClassVar

import torch

from fl_lightning.data._dataset import Samples
from fl_lightning.data._images import ImageData
from fl_lightning.data._split import draw

TEST_SAMPLES = 360


class Digits(ImageData):
    """1797 handwritten digits, 8x8 pixels, bundled with scikit-learn; 360 random ones are the test set."""

    name: ClassVar[str] = "digits"
    cites: ClassVar[tuple[str, ...]] = ("alpaydin1998optical",)
    sizes: ClassVar[tuple[int, int]] = (1797 - TEST_SAMPLES, TEST_SAMPLES)
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)

    def images(self) -> tuple[Samples, Samples]:
        """The scans, whose pixels count 0 to 16."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        x = torch.from_numpy(scans.images).float()[:, None] / 16
        samples = Samples(x, torch.from_numpy(scans.target).long())
        test = draw(len(samples), TEST_SAMPLES, self.name, "split")
        return samples.without(test), samples[test]
