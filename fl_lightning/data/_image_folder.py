"""Images in folders `train/<class>/*` and `test/<class>/*`, on disk or in a tar archive.

An archive is read member by member in memory and never unpacked, so that no path of it can lead anywhere; one that
tries to, or that holds links, is refused. Decoded pixels are kept beside the data, since decoding takes seconds.
"""

import hashlib
import io
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fl_lightning.data._files import DataError, atomic, log
from fl_lightning.data._sources import DAMAGED
from fl_lightning.inputs import bounded
from fl_lightning.paths import data_folder

MAX_IMAGE = 2**26
"""Bytes of one image file."""

Splits = dict[str, tuple[Tensor, Tensor]]
"""Split -> pixels `[n, 3, height, width]` (uint8) and labels `[n]` (int64)."""
Entry = tuple[str, str, str, bytes]

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
WORTH_KEEPING_SECONDS = 2.0


def read_archive(content: bytes) -> Splits:
    """Images of a tar archive with the folders `train` and `test` (at its root or one folder deep).

    Raises:
        DataError: paths that leave the archive, links, or no such folders.
    """
    return cached(sha256_of(content), lambda: decode(archive_entries(content)))


def read_folder(folder: Path) -> Splits:
    """Images of a folder on disk; recognised later by the names, sizes and times of its files."""
    files = sorted(path for split in SPLITS for path in (folder / split).glob("*/*") if path.suffix.lower() in SUFFIXES)
    listing = "".join(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\n" for path in files)
    entries = ((path.parts[-3], path.parts[-2], path.name, path.read_bytes()) for path in files)
    return cached(sha256_of(listing.encode()), lambda: decode(entries))


def archive_entries(content: bytes) -> Iterator[Entry]:
    """Split, class, file name and content of every image of a tar archive.

    Raises:
        DataError: the archive is damaged, or has a member that could reach outside of it.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"archive refused: its member {member.name!r} leads out of it")
                if not (member.isreg() or member.isdir()):
                    raise DataError(f"archive refused: its member {member.name!r} is neither file nor folder")
                stream = archive.extractfile(member) if path.suffix.lower() in SUFFIXES else None
                if stream is not None and len(path.parts) in (3, 4) and path.parts[-3] in SPLITS:
                    yield path.parts[-3], path.parts[-2], path.name, bounded(stream, MAX_IMAGE)
    except DAMAGED as error:
        raise DataError(f"archive cannot be read: {error}") from None


def decode(entries: Iterable[Entry]) -> Splits:
    """Pixels and labels; classes are numbered and images ordered by name.

    Raises:
        DataError: a file is no image, sizes differ, or training and test folder differ in their classes.
    """
    images: dict[str, dict[tuple[str, str], NDArray[np.uint8]]] = {split: {} for split in SPLITS}
    for split, label, file, content in entries:
        images[split][label, file] = pixels(content, f"{split}/{label}/{file}")
    classes = {split: sorted({label for label, _ in images[split]}) for split in SPLITS}
    sizes = {image.shape for split in SPLITS for image in images[split].values()}
    if not classes["train"] or classes["train"] != classes["test"] or len(sizes) != 1:
        raise DataError(
            f"image folders need the same classes in train/ and test/ and one image size, got {len(classes['train'])} "
            f"and {len(classes['test'])} classes and the sizes {sorted(size[1:] for size in sizes) or 'none'}"
        )
    number = {label: index for index, label in enumerate(classes["train"])}
    return {
        split: (
            torch.from_numpy(np.stack([found[key] for key in sorted(found)])),
            torch.tensor([number[label] for label, _ in sorted(found)]),
        )
        for split, found in images.items()
    }


def pixels(content: bytes, name: str) -> NDArray[np.uint8]:
    """An image file as `[3, height, width]`."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name} cannot be decoded: {error}") from None


def cached(source: str, work: Callable[[], Splits]) -> Splits:
    """The result of decoding `source`, from disk where it was kept; a folder that cannot be written keeps nothing."""
    path = data_folder() / "cifar10" / "decoded.safetensors"
    try:
        with safe_open(path, framework="pt") as kept:
            if (kept.metadata() or {}).get("source") == source:
                return {split: (kept.get_tensor(f"{split}.x"), kept.get_tensor(f"{split}.y")) for split in SPLITS}
    except (OSError, SafetensorError):
        pass  # nothing kept, or damaged: decode (again)
    start = time.monotonic()
    splits = work()
    if time.monotonic() - start > WORTH_KEEPING_SECONDS:
        tensors = {
            f"{split}.{part}": tensor for split in SPLITS for part, tensor in zip("xy", splits[split], strict=True)
        }
        try:
            with atomic(path) as temporary:
                save_file(tensors, temporary, {"source": source})
        except OSError as error:
            log(f"decoded images are not kept: {error}")
    return splits


def sha256_of(content: bytes) -> str:
    """What decoded images are recognised by."""
    return hashlib.sha256(content).hexdigest()
