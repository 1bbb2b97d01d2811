"""Packed folders of strangers: what they hold is checked before anything of it is unpacked."""

import hashlib
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

__all__ = [
    "MAX_FILES",
    "MAX_PACKED_BYTES",
    "FileSum",
    "check_listed",
    "file_sum",
    "read_member",
    "unpack_member",
    "zip_members",
]

MAX_FILES = 100_000
"""Files of one pack."""

MAX_PACKED_BYTES = 2**36
"""Bytes of all files of one pack, unpacked."""

SEGMENT = re.compile(r"[^\\/:*?\"<>|\x00-\x1f\x7f]{1,200}")
BLOCK = 2**20


class FileSum(NamedTuple):
    """How long a file is, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


def zip_members(archive: ZipFile) -> dict[str, ZipInfo]:
    """The files of an archive by path.

    Raises:
        BadZipFile: too many or too large, packed in a way that is not read here, a link, twice the same path, or one that
            leads anywhere but down.
    """
    members: dict[str, ZipInfo] = {}
    seen: set[str] = set()
    if len(archive.infolist()) > MAX_FILES:
        raise BadZipFile(f"it holds more than {MAX_FILES:,} files")
    for info in archive.infolist():
        if info.is_dir():
            continue
        parts = info.filename.split("/")
        if not all(SEGMENT.fullmatch(part) and part.strip(". ") for part in parts) or len(info.filename) > 1000:
            raise BadZipFile(f"{info.filename[:100]!r} is no path below a folder")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 0x1 or info.compress_type not in (0, 8):
            raise BadZipFile(f"{info.filename!r} is a link, encrypted, or packed in a way that is not read here")
        if info.filename.casefold() in seen:
            raise BadZipFile(f"it holds {info.filename!r} twice")
        seen.add(info.filename.casefold())
        members[info.filename] = info
    total = sum(info.file_size for info in members.values())
    if total > MAX_PACKED_BYTES:
        raise BadZipFile(f"it unpacks to {total:,} bytes, more than {MAX_PACKED_BYTES:,}")
    return members


def read_member(archive: ZipFile, info: ZipInfo, limit: int) -> bytes:
    """Content of one file.

    Raises:
        BadZipFile: it is longer than `limit`, or than it says.
    """
    if info.file_size > limit:
        raise BadZipFile(f"{info.filename} unpacks to {info.file_size:,} bytes, more than {limit:,}")
    with archive.open(info) as stream:
        content = stream.read(limit + 1)
    if len(content) != info.file_size:
        raise BadZipFile(f"{info.filename} is not as long as it says")
    return content


def unpack_member(archive: ZipFile, info: ZipInfo, path: Path, expected: FileSum) -> None:
    """Write one file, whatever it holds, and check it.

    Raises:
        BadZipFile: it is not what was packed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with archive.open(info) as stream, path.open("xb") as file:
        while block := stream.read(BLOCK):
            size += len(block)
            if size > expected.size:
                break
            digest.update(block)
            file.write(block)
    if (size, digest.hexdigest()) != tuple(expected):
        raise BadZipFile(f"{info.filename} is not what was packed")


def file_sum(path: Path) -> FileSum:
    """Length and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileSum(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def check_listed(members: Mapping[str, ZipInfo], listed: Mapping[str, FileSum]) -> None:
    """Refuse an archive whose files are not those that its list names.

    Raises:
        BadZipFile: naming one.
    """
    for path in sorted(members.keys() ^ listed.keys()):
        raise BadZipFile(f"{path[:200]!r} is {'not in its list' if path in members else 'missing'}")
    for path, info in members.items():
        if info.file_size != listed[path].size:
            raise BadZipFile(f"{path!r} is not as long as its list says")
