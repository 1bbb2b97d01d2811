"""FEMNIST: handwritten digits and letters, each with its writer.

References:
    S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konečný, H. B. McMahan, V. Smith, A. Talwalkar. LEAF: A Benchmark for
    Federated Settings. 2018.
    G. Cohen, S. Afshar, J. Tapson, A. van Schaik. EMNIST: Extending MNIST to handwritten letters. IJCNN 2017 (of which
    TensorFlow Federated keeps the writers).
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from fl_lightning.data._catalogue import FEMNIST_LEAF, FEMNIST_TFF
from fl_lightning.data._dataset import Dataset, Samples
from fl_lightning.data._files import DataError, Files, Folder, OwnFiles
from fl_lightning.data._images import ImageData
from fl_lightning.data._split import draw

PIXELS = 28 * 28
CLASSES = 62
STAND_IN_WRITERS = 100

Writer = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Pixels `[n, 28, 28]` in [0, 1] and labels `[n]` of one writer."""


def checked(pixels: ArrayLike, labels: ArrayLike, where: str) -> Writer:
    """One writer's samples.

    Raises:
        DataError: not one label for each image of 784 pixels in [0, 1], or a label outside of 0..61.
    """
    try:
        x, y = np.asarray(pixels, np.float32), np.asarray(labels, np.int64)
        x = x.reshape(len(y), 28, 28)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected 28x28 pixels and one label an image ({error})", "femnist") from None
    if len(y) and not (x.min() >= 0 and x.max() <= 1 and y.min() >= 0 and y.max() < CLASSES):
        limits = f"pixels {x.min():g} to {x.max():g}, labels {y.min()} to {y.max()}"
        raise DataError(f"{where}: expected pixels in [0, 1] and labels 0 to {CLASSES - 1}, got {limits}", "femnist")
    return x, y


def read_leaf(path: Path) -> Iterator[tuple[str, Writer]]:
    """Writers of one of LEAF's files: `{"users": [...], "user_data": {user: {"x": [[784 numbers]], "y": [label]}}}`.

    Raises:
        DataError: the file is none of LEAF's.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        users = content["user_data"]
        for name in content["users"]:
            yield name, checked(users[name]["x"], users[name]["y"], f"{path}, user {name}")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not one of LEAF's files ({type(error).__name__}: {error})", "femnist") from None


def read_tff(path: Path) -> Iterator[tuple[str, Writer]]:
    """Writers of one of TensorFlow Federated's files: the groups `examples/<writer>` with `pixels` and `label`.

    Raises:
        DataError: the file is none of TensorFlow Federated's, or h5py is missing.
    """
    if importlib.util.find_spec("h5py") is None:
        raise DataError(f"{path} is read by h5py: pip install fl-lightning[femnist]", "femnist")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            for name, group in file["examples"].items():
                yield name, checked(group["pixels"][()], group["label"][()], f"{path}, writer {name}")
    except (OSError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: not one of TensorFlow Federated's files ({error})", "femnist") from None


def stacked(writers: Sequence[Writer], numbers: Sequence[int]) -> Samples:
    """All samples, one writer after the other, with the writer's number of each."""
    x = np.concatenate([pixels for pixels, _ in writers])[:, None]
    y = np.concatenate([labels for _, labels in writers])
    owners = np.repeat(np.asarray(numbers, np.int64), [len(labels) for _, labels in writers])
    return Samples(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(owners))


class Femnist(ImageData):
    """Digits and letters of some 3500 writers, 28x28 grey pixels (black on white: paper is 1), 62 classes.

    Taken from LEAF's JSON files or, where these are not there, TensorFlow Federated's HDF5 files; neither has a checksum that
    could be checked, and neither is fetched. Every sample knows its writer, for the partition `natural`.

    Args:
        max_writers: so many writers, drawn at random, instead of all; all samples together fill 2.5 GB.
    """

    name: ClassVar[str] = "femnist"
    cites: ClassVar[tuple[str, ...]] = ("caldas2018leaf", "cohen2017emnist")
    places: ClassVar[tuple[Files | Folder | OwnFiles, ...]] = (FEMNIST_LEAF, FEMNIST_TFF)
    sizes: ClassVar[tuple[int, int]] = (671_585, 77_483)
    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    classes: ClassVar[int] = CLASSES

    max_writers: int | None = Field(default=None, ge=1)

    def read(self) -> Dataset:
        """The samples of all chosen writers, standardised if asked for."""
        train, test, names = self._samples()
        return replace(self._prepared(train, test), owner_names=names)

    def images(self) -> tuple[Samples, Samples]:
        """Training and test split."""
        train, test, _ = self._samples()
        return train, test

    def stand_in(self) -> Dataset:
        """Each class a blurred pattern under noise; writers take turns."""
        dataset = super().stand_in()
        owner = torch.arange(len(dataset.train)) % STAND_IN_WRITERS
        names = tuple(f"writer {number}" for number in range(STAND_IN_WRITERS))
        return replace(dataset, train=replace(dataset.train, owner=owner), owner_names=names)

    def _samples(self) -> tuple[Samples, Samples, tuple[str, ...]]:
        leaf = bool(FEMNIST_LEAF.locate())
        paths = FEMNIST_LEAF.read() if leaf else FEMNIST_TFF.read()
        parse = read_leaf if leaf else read_tff
        in_train = [path.parent.name == "train" if leaf else path.name.endswith("train.h5") for path in paths]
        splits: dict[bool, dict[str, Writer]] = {True: {}, False: {}}
        for path, training in zip(paths, in_train, strict=True):
            splits[training].update((name, own) for name, own in parse(path) if len(own[1]))
        names = sorted(splits[True])
        if not names or not splits[False]:
            raise DataError("the files hold no samples for training, or none for testing", self.name)
        if self.max_writers is not None:
            names = [names[i] for i in draw(len(names), self.max_writers, self.name, "max_writers").tolist()]
        train = stacked([splits[True][name] for name in names], range(len(names)))
        known = [name for name in names if name in splits[False]]
        # LEAF can split by writer: then the test set is that of other writers
        tested = known or sorted(splits[False])
        number = {name: index for index, name in enumerate(names)}
        test = stacked([splits[False][name] for name in tested], [number[name] for name in known] or [-1] * len(tested))
        return train, test if known else replace(test, owner=None), tuple(names)
