"""What all image data sets share: pixels in [0, 1], standardised on request, and a synthetic stand-in."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from fl_lightning.data._dataset import Dataset, Samples
from fl_lightning.data._split import SYNTHETIC, SplitData
from fl_lightning.randomness import generator


class ImageData(SplitData):
    """Images `[n, channels, height, width]` with classes.

    Args:
        normalize: standardise each channel by mean and standard deviation of the whole training split; otherwise
            pixels lie in [0, 1].
    """

    normalize: bool = False

    @abstractmethod
    def images(self) -> tuple[Samples, Samples]:
        """Training and test split with pixels in [0, 1]."""

    def read(self) -> Dataset:
        """The images, standardised if asked for."""
        return self._prepared(*self.images())

    def stand_in(self) -> Dataset:
        """Each class a blurred pattern of its own under noise."""
        return self._prepared(*clouds(self.shape, self.classes, SYNTHETIC, generator(0, "synthetic", self.name)))

    def _prepared(self, train: Samples, test: Samples) -> Dataset:
        black = train.x.new_zeros(train.x.shape[1], 1, 1)
        dataset = Dataset(train, test, "classification", self.classes, limits=(black, black + 1))
        return standardised(dataset) if self.normalize else dataset


def standardised(dataset: Dataset) -> Dataset:
    """Each channel minus its mean, over its standard deviation, both of the training split.

    x' = (x - mean_train) / std_train; a constant channel is only centred.
    """
    deviation, mean = torch.std_mean(dataset.train.x, dim=(0, 2, 3), keepdim=True, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    train, test = (replace(part, x=(part.x - mean) / scale) for part in (dataset.train, dataset.test))
    limits = dataset.limits and ((dataset.limits[0] - mean[0]) / scale[0], (dataset.limits[1] - mean[0]) / scale[0])
    return replace(dataset, train=train, test=test, limits=limits)


def clouds(
    shape: tuple[int, ...], classes: int, sizes: tuple[int, int], random: torch.Generator
) -> tuple[Samples, Samples]:
    """Learnable images: a class is a coarse random pattern, a sample is the pattern plus pixel noise, cut to [0, 1].

    x = clip(pattern_y + 0.2 * noise, 0, 1), pattern constant on blocks of a quarter of the image (so that convolutions
    and pooling find it), labels uniform.
    """
    channels, height, width = shape
    block = max(2, height // 4)
    rows, columns = -(-height // block), -(-width // block)
    coarse: Tensor = torch.rand(classes, channels, rows, columns, generator=random)
    patterns = coarse.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :height, :width]

    def samples(count: int) -> Samples:
        y = torch.randint(classes, (count,), generator=random)
        noise = torch.randn(count, *shape, generator=random)
        return Samples((patterns[y] + 0.2 * noise).clamp(0, 1), y)

    return samples(sizes[0]), samples(sizes[1])
