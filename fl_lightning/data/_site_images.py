"""Image folders of the user's own: `site/class/*.png`."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from fl_lightning.data._dataset import Data, Dataset, Samples
from fl_lightning.data._files import DataError, atomic
from fl_lightning.data._frame import find
from fl_lightning.data._image_folder import SUFFIXES
from fl_lightning.data._images import standardised
from fl_lightning.data._split import split
from fl_lightning.data._table import TRAIN, drawn_split
from fl_lightning.paths import data_folder
from fl_lightning.registry import import_class

MAPPED_BYTES = 2**30
"""From this size on pixels are mapped from a file instead of held in memory."""


class ImageFolder(Data):
    """Images in folders whose names say owner and class: `site/class/*.png`.

    Args:
        path: the folder, relative to the working folder or to the data folder.
        owner: which folder on the way, from 1, names the owner, such as a hospital; None: nobody.
        target: which folder on the way names the class.
        split: which folder on the way is `train` or anything else (test); None: `test_share` of every owner's images, drawn
            once, are test.
        size: height and width that images are brought to; None: they have one size.
        channels: 3 for colours, 1 for grey.
        transform: `package.module:function` that maps one image `[channels, height, width]` in [0, 1] to a tensor of the same
            shape for every image; applied once, when the images are read.
        normalize: standardise each channel by the training images; otherwise pixels lie in [0, 1].
        mapped: hold pixels in a file that is mapped into memory, of which only what is looked at is read: `auto` from 1 GiB on.
        test_share: share of the images that are the test set.
        train_samples: so many training images, drawn at random, instead of all.
        test_samples: so many test images, drawn at random, instead of all.
    """

    name: ClassVar[str] = "image_folder"

    path: str = Field(min_length=1)
    owner: PositiveInt | None = 1
    target: PositiveInt = 2
    split: PositiveInt | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    channels: Literal[1, 3] = 3
    transform: str | None = None
    normalize: bool = False
    mapped: bool | Literal["auto"] = "auto"
    test_share: float = Field(default=0.2, gt=0, lt=1)
    train_samples: PositiveInt | None = None
    test_samples: PositiveInt | None = None

    @field_validator("path", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    def load(self) -> Dataset:
        """The images as tensors, decoded once.

        Raises:
            DataError: there are no images, one cannot be decoded, or sizes differ; names the file.
        """
        root = find(self.path)
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        deepest = max(self.owner or 0, self.target, self.split or 0)
        words = [path.relative_to(root).parts for path in files]
        shallow = next((path for path, parts in zip(files, words, strict=True) if len(parts) <= deepest), None)
        if not files or shallow is not None:
            raise DataError(f"needs images {deepest} folders deep, got {shallow or f'none in {root}'}", "path")
        owners, owner_names = numbered([parts[self.owner - 1] for parts in words]) if self.owner else (None, ())
        y, classes = numbered([parts[self.target - 1] for parts in words])
        if self.split:
            training = torch.tensor([parts[self.split - 1].lower() in TRAIN for parts in words])
            train, test = torch.nonzero(training).flatten(), torch.nonzero(~training).flatten()
        else:
            train, test = drawn_split(len(files), self, owners)
        if not len(train) or not len(test):
            raise DataError(
                f"{len(train)} images are for training and {len(test)} for test, some of each are needed", "split"
            )
        order = torch.cat([train, test])  # training images first, so that both are slices of one mapped tensor
        x = self._pixels([files[row] for row in order.tolist()], root)
        samples = Samples(x, y[order], None if owners is None else owners[order])
        black = torch.zeros(x.shape[1], 1, 1)
        dataset = Dataset(
            samples[: len(train)],
            samples[len(train) :],
            "classification",
            len(classes),
            limits=(black, black + 1),
            owner_names=owner_names,
            class_names=classes,
        )
        if self.normalize:
            dataset = standardised(dataset)
        return split(dataset, self.name, self.validation, self.train_samples, self.test_samples)

    def _pixels(self, files: list[Path], root: Path) -> Tensor:
        """`[n, channels, height, width]` in [0, 1]."""
        transform = None if self.transform is None else import_class(self.transform)
        first = torch.from_numpy(self._decoded(files[0], root))
        shape = (len(files), *first.shape)
        large = first.numel() * 4 * len(files) >= MAPPED_BYTES if self.mapped == "auto" else self.mapped
        if not large:
            return self._fill(torch.empty(shape), files, root, transform)
        listing = "".join(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\n" for path in files)
        text = f"{listing}{self.size}{self.channels}{self.transform}"
        kept = data_folder() / "mapped" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.f32"
        if not kept.is_file():
            with atomic(kept) as temporary:
                written = np.memmap(temporary, np.float32, "w+", shape=shape)
                self._fill(torch.from_numpy(written), files, root, transform)
                written.flush()
        count = int(np.prod(shape))
        return torch.from_file(str(kept), shared=False, size=count, dtype=torch.float32).view(shape)

    def _fill(self, pixels: Tensor, files: list[Path], root: Path, transform: Any) -> Tensor:
        for row, path in enumerate(files):
            image = torch.from_numpy(self._decoded(path, root))
            if image.shape != pixels.shape[1:]:
                got = f"{tuple(image.shape[1:])} after {tuple(pixels.shape[2:])}"
                raise DataError(f"{path.relative_to(root)} has the size {got}: set size to bring images to one", "size")
            pixels[row] = image if transform is None else transform(image)
        return pixels

    def _decoded(self, path: Path, root: Path) -> NDArray[np.float32]:
        try:
            with Image.open(path) as image:
                plain = image.convert("RGB" if self.channels == 3 else "L")
                sized = plain.resize((self.size[1], self.size[0])) if self.size else plain
                array = np.asarray(sized, np.float32).reshape(*sized.size[::-1], self.channels)
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path.relative_to(root)} cannot be decoded: {error}", "path") from None
        return np.ascontiguousarray(array.transpose(2, 0, 1)) / np.float32(255)


def numbered(words: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """`[n]` number of each word in their alphabetical order, and the words.

    Example:
        >>> numbered(["b", "a", "b"])
        (tensor([1, 0, 1]), ('a', 'b'))
    """
    names = tuple(sorted(set(words)))
    number = {name: index for index, name in enumerate(names)}
    return torch.tensor([number[word] for word in words]), names
