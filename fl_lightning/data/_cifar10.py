"""CIFAR-10, from any of the forms in which it is handed on.

References:
    A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto, 2009.
"""

import io
import pickletools
import tarfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_lightning.data._catalogue import CIFAR10, CIFAR10_BATCHES, CIFAR10_FOLDER, CIFAR10_IMAGES, CIFAR10_PYTHON
from fl_lightning.data._dataset import Samples
from fl_lightning.data._files import DataError, Files, Folder
from fl_lightning.data._image_folder import Splits, read_archive, read_folder
from fl_lightning.data._images import ImageData
from fl_lightning.data._packages import regular

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def parse_binary(content: bytes) -> Batch:
    """A batch of the binary version: records of one label byte and 3072 pixel bytes (red, green, blue planes).

    Raises:
        DataError: not a whole number of records.
    """
    if not content or len(content) % (1 + PIXELS):
        raise DataError(f"not a binary CIFAR-10 batch: {len(content)} bytes are no multiple of {1 + PIXELS}")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def parse_pickled(content: bytes) -> Batch:
    """A batch of the python version, without ever loading the pickle.

    The opcodes of a pickle are listed, not executed: the pixels are its one long byte string, the labels the integers
    that follow the key `labels`, up to the next string.

    Raises:
        DataError: there are no such pixels, or not one label for each image.
    """
    pixels, labels, among_labels = b"", [], False
    try:
        for opcode, value, _ in pickletools.genops(content):
            if opcode.name in ("BININT1", "BININT", "INT") and among_labels:
                labels.append(value)
            elif isinstance(value, str | bytes) and opcode.name.startswith(("BIN", "SHORT_BIN", "STRING", "UNICODE")):
                among_labels = value in ("labels", b"labels")
                raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
                pixels = max(pixels, raw, key=len)
    except ValueError as error:
        raise DataError(f"not a pickled CIFAR-10 batch: {error}") from None
    if not labels or len(pixels) != len(labels) * PIXELS:
        raise DataError(f"not a pickled CIFAR-10 batch: {len(pixels)} bytes of pixels for {len(labels)} labels")
    return np.frombuffer(pixels, np.uint8).reshape(-1, *SHAPE), np.array(labels, np.int64)


def from_batches(contents: Mapping[str, bytes], parse: Callable[[bytes], Batch] = parse_pickled) -> Splits:
    """Five training batches and a test batch."""
    batches = {name: parse(content) for name, content in contents.items()}
    parts = {"train": [batches[name] for name in TRAIN], "test": [batches["test_batch"]]}
    return {
        split: (
            torch.from_numpy(np.concatenate([pixels for pixels, _ in part])),
            torch.from_numpy(np.concatenate([labels for _, labels in part])),
        )
        for split, part in parts.items()
    }


def from_archive(contents: Mapping[str, bytes], path: str, parse: Callable[[bytes], Batch]) -> Splits:
    """The batches in a tar archive, the only file, at `path` with `{batch}` filled in; nothing else of it is read."""
    (content,) = contents.values()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        batches = {name: regular(archive, path.format(batch=name)) for name in (*TRAIN, "test_batch")}
    return from_batches(batches, parse)


FORMS: dict[Files | Folder, Callable[[Any], Splits]] = {
    CIFAR10: lambda files: from_archive(files, "cifar-10-batches-bin/{batch}.bin", parse_binary),
    CIFAR10_PYTHON: lambda files: from_archive(files, "cifar-10-batches-py/{batch}", parse_pickled),
    CIFAR10_BATCHES: from_batches,
    CIFAR10_IMAGES: lambda files: read_archive(*files.values()),
    CIFAR10_FOLDER: read_folder,
}


class Cifar10(ImageData):
    """60 000 photographs, 32x32 colour pixels, 10 classes.

    Taken from the first that is there: the binary archive, torchvision's python batches (as archive or unpacked), an
    image folder (as archive or unpacked). Image folders mostly hold JPEG files, whose pixels differ a little.
    """

    name: ClassVar[str] = "cifar10"
    cites: ClassVar[tuple[str, ...]] = ("krizhevsky2009learning",)
    places: ClassVar[tuple[Files | Folder, ...]] = tuple(FORMS)
    sizes: ClassVar[tuple[int, int]] = (50_000, 10_000)
    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)

    def images(self) -> tuple[Samples, Samples]:
        """The images, in whatever form is there; the binary archive is fetched when none is."""
        place = next((place for place in FORMS if place.locate()), CIFAR10)
        splits = FORMS[place](place.read())
        train, test = (Samples(splits[split][0].float().div_(255), splits[split][1]) for split in ("train", "test"))
        return train, test
