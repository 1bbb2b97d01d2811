"""The idx format of MNIST's files: a big-endian header, then plain bytes.

References:
    Y. LeCun, C. Cortes, C. J. C. Burges. The MNIST database of handwritten digits. 1998, "File formats".
"""

import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_lightning.data._dataset import Samples
from fl_lightning.data._files import DataError, Files

UNSIGNED_BYTE = 8


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes as an array that shares its memory.

    Raises:
        DataError: no idx file, another element type, or a length that the header does not announce.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [7, 8, 9]
    """
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"not an idx file of unsigned bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start].ljust(start - 4, b"\0"))
    if len(content) - start != math.prod(shape):
        raise DataError(f"idx header announces {shape} = {math.prod(shape)} bytes, the file has {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_images(files: Files) -> tuple[Samples, Samples]:
    """Training and test images of a data set in MNIST's four files: x `[n, 1, 28, 28]` in [0, 1], y `[n]`."""
    contents = files.read()
    images = {split: parse_idx(contents[f"{split}-images-idx3-ubyte"]) for split in ("train", "t10k")}
    labels = {split: parse_idx(contents[f"{split}-labels-idx1-ubyte"]) for split in ("train", "t10k")}
    train, test = (Samples(unit_interval(images[split]), integers(labels[split])) for split in ("train", "t10k"))
    return train, test


def unit_interval(images: NDArray[np.uint8]) -> Tensor:
    """Grey images `[n, height, width]` of bytes as float32 `[n, 1, height, width]` in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)[:, None]).div_(255)


def integers(labels: NDArray[np.uint8]) -> Tensor:
    """Labels as int64."""
    return torch.from_numpy(labels.astype(np.int64))
