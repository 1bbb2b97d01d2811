"""What is on this machine, and getting what is not: the answers behind `fl-lightning data list` and `data get`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.data._dataset import Task
from fl_lightning.data._files import Say, log
from fl_lightning.data._split import SplitData
from fl_lightning.registry import registry


@dataclass(frozen=True)
class Status:
    """A data set and where it lies.

    Attributes:
        name: as configurations write it.
        present: whether it can be loaded without fetching anything. Checksums are not read.
        where: folder or file, `bundled`, or empty.
        size: bytes on disk; 0 when missing or bundled.
        train: number of training samples.
        test: number of test samples.
        shape: of one input.
        classes: number of classes, 1 for regression.
        task: classification or regression.
    """

    name: str
    present: bool
    where: str
    size: int
    train: int
    test: int
    shape: tuple[int, ...]
    classes: int
    task: Task


def status() -> Iterator[Status]:
    """The state of every data set that can be listed, by name."""
    for cls in registry("data"):
        if issubclass(cls, SplitData):
            found = locate(cls.name)
            where = common(found) if cls.places else "bundled"
            facts = (*cls.sizes, cls.shape, cls.classes, cls.task)
            yield Status(cls.name, bool(where), where, sum(map(size_of, found)), *facts)


def locate(name: str) -> list[Path]:
    """The files or the folder that a data set would be loaded from; empty when missing or bundled.

    Raises:
        ConfigError: unknown name.
    """
    cls = registry("data")[name]
    places = cls.places if issubclass(cls, SplitData) else ()
    return next((found for place in places if (found := place.locate())), [])


def get(name: str, say: Say = log) -> None:
    """Find a data set or fetch it, check it, and tell what was done.

    Args:
        name: as configurations write it.
        say: is told, line by line, what happens.

    Raises:
        ConfigError: unknown name.
        DataError: it cannot be had, or a file has the wrong checksum.
    """
    cls = registry("data")[name]
    places = cls.places if issubclass(cls, SplitData) else ()
    if not places:
        say(f"{name}: needs no files")
        return
    next((place for place in places if place.locate()), places[0]).read(say)


def common(paths: list[Path]) -> str:
    """The file, or the folder of several files."""
    if len(paths) == 1:
        return str(paths[0])
    return ", ".join(sorted({str(path.parent) for path in paths}))


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
