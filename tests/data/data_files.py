"""What the tests of the data sets share: files and archives as their publishers write them, and sources that are none."""

import hashlib
import io
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_lightning.data._files import Files
from fl_lightning.data._sources import UnavailableError


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


@dataclass
class Fake:
    """A source that has these files, or fails with this reason; it counts how often it was asked."""

    title: str
    contents: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""
    asked: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.title

    def fetch(self, files):
        self.asked.append(list(files))
        if self.reason:
            raise UnavailableError(self.reason)
        return {name: self.contents[name] for name in files}


def two_files(*sources: Fake, system: Path | None = None) -> Files:
    checksums = {"a": sha(b"alpha"), "b": sha(b"beta")}
    layouts = ("set/{file}", "Set/raw/{file}")
    return Files("set", checksums, layouts, (f"{system}/{{file}}",) if system else (), sources, " (plain or .gz)")
