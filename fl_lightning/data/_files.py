"""Files on disk: where they may lie, their checksums, and how a missing one is fetched and saved."""

import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.data._sources import Source, UnavailableError
from fl_lightning.errors import ConfigError
from fl_lightning.inputs import gunzip
from fl_lightning.paths import data_folder

Say = Callable[[str], None]
log: Say = logging.getLogger("fl_lightning.data").info


class DataError(ConfigError):
    """Data that cannot be had or cannot be trusted: what was tried, or which file is wrong and why."""


@dataclass(frozen=True, eq=False)
class Files:
    """The files of one data set; every copy, wherever it comes from, is checked by the same number.

    Attributes:
        name: name of the data set.
        checksums: file -> SHA-256 of its content, or `md5:...`; of the unpacked content, for a file that may also come
            as `.gz`.
        layouts: where a file lies in the data folder, e.g. `mnist/{file}`; downloads are saved in the first.
        system: where a system package puts it.
        sources: who delivers it, in the order in which they are asked.
        hint: what else the user could do when nobody does.
    """

    name: str
    checksums: Mapping[str, str]
    layouts: tuple[str, ...]
    system: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    hint: str = ""

    def locate(self) -> list[Path]:
        """Where each file lies; empty when one is missing. Nothing is read."""
        found = [self._in_data_folder(file) or self._in_system(file) for file in self.checksums]
        return [path for path in found if path] if all(found) else []

    def read(self, say: Say = log) -> dict[str, bytes]:
        """The checked content of every file; missing ones are fetched, and saved in the data folder.

        Raises:
            DataError: a file in the data folder has the wrong checksum (it is never replaced), or no source delivers.
        """
        contents: dict[str, bytes] = {}
        folders: set[str] = set()
        tried: list[str] = []
        for file, checksum in self.checksums.items():
            own = self._in_data_folder(file)
            path = own or self._in_system(file)
            if path is None:
                continue
            try:
                contents[file] = read_checked(path, checksum)
                folders.add(str(path.parent))
            except DataError as error:
                if own:
                    raise
                tried.append(str(error))
        if contents:
            count = f"{len(contents)} of {len(self.checksums)} files"
            say(f"{self.name}: found {count} in {', '.join(sorted(folders))}; checksums are right")
        missing = [file for file in self.checksums if file not in contents]
        return contents | self._fetch(missing, tried, say) if missing else contents

    def _in_data_folder(self, file: str) -> Path | None:
        return first_existing([data_folder() / layout.format(file=file) for layout in self.layouts])

    def _in_system(self, file: str) -> Path | None:
        return first_existing([Path(layout.format(file=file)) for layout in self.system])

    def _fetch(self, missing: list[str], tried: list[str], say: Say) -> dict[str, bytes]:
        targets = {file: data_folder() / self.layouts[0].format(file=file) for file in missing}
        folder = targets[missing[0]].parent
        for source in self.sources:
            say(f"{self.name}: asking {source}")
            try:
                contents = source.fetch(missing)
                for file in missing:
                    if problem := mismatch(contents[file], self.checksums[file]):
                        raise UnavailableError(f"{file}: {problem}")
            except UnavailableError as reason:
                tried.append(f"{source} ({reason})")
                say(f"{self.name}: not from {source}: {reason}")
                continue
            for file, target in targets.items():
                save(contents[file], target)
            say(f"{self.name}: got {', '.join(missing)} from {source}; checksums are right; saved in {folder}")
            return contents
        raise DataError(
            f"cannot get {', '.join(missing)}; tried {'; '.join([f'the data folder {data_folder()}', *tried])}. "
            f"By hand: put the files into {folder}{self.hint}, or point FL_LIGHTNING_DATA to a folder that has them",
            self.name,
        )


@dataclass(frozen=True)
class Folder:
    """An image folder `train/<class>/*`, `test/<class>/*` that the user unpacked; it has no published checksum."""

    names: tuple[str, ...]

    def locate(self) -> list[Path]:
        """The first of the folders that has both splits."""
        folders = [data_folder() / name for name in self.names]
        return [path for path in folders if (path / "train").is_dir() and (path / "test").is_dir()][:1]

    def read(self, say: Say = log) -> Path:
        """The folder."""
        path = self.locate()[0]
        say(f"found the image folder {path}; its images have no published checksum")
        return path


@dataclass(frozen=True)
class OwnFiles:
    """Files that the user made or fetched himself, each pattern matched by at least one; no checksum is published for them.

    Attributes:
        name: name of the data set.
        patterns: globs in the data folder.
        hint: what to put where.
    """

    name: str
    patterns: tuple[str, ...]
    hint: str

    def locate(self) -> list[Path]:
        """All matching files, sorted; empty when a pattern matches none."""
        found = [sorted(path for path in data_folder().glob(pattern) if path.is_file()) for pattern in self.patterns]
        return [path for paths in found for path in paths] if all(found) else []

    def read(self, say: Say = log) -> list[Path]:
        """The files.

        Raises:
            DataError: they are not there.
        """
        paths = self.locate()
        if not paths:
            raise DataError(f"not in the data folder {data_folder()}; {self.hint}", self.name)
        say(f"{self.name}: found {len(paths)} files in {paths[0].parent.parent}; they have no published checksum")
        return paths


def first_existing(paths: list[Path]) -> Path | None:
    """The first path that exists, as it is or with `.gz` behind it."""
    candidates = [candidate for path in paths for candidate in (path, path.with_name(path.name + ".gz"))]
    return next((path for path in candidates if path.is_file()), None)


def mismatch(content: bytes, checksum: str) -> str:
    """Empty when the content has the checksum; otherwise what was expected and what was got."""
    kind, _, expected = checksum.rpartition(":")
    got = hashlib.new(kind or "sha256", content).hexdigest()
    return "" if got == expected else f"wrong checksum: expected {(kind or 'sha256').upper()} {expected}, got {got}"


def read_checked(path: Path, checksum: str) -> bytes:
    """Content of a file; a `.gz` that is no archive is unpacked.

    Raises:
        DataError: unreadable, or not what the checksum says.
    """
    again = "replace the file, or delete it"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" and not path.name.endswith(".tar.gz"):
            content = gunzip(content)
    except (EOFError, zlib.error) as error:
        problem = mismatch(content, checksum)
        raise DataError(f"{path}: cannot be unpacked ({error}), {problem}; {again}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if problem := mismatch(content, checksum):
        raise DataError(f"{path}: {problem}; {again}")
    return content


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A temporary file beside the target that takes its place when everything went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def save(content: bytes, target: Path) -> None:
    """Write a file so that it is there completely or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        with atomic(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); set FL_LIGHTNING_DATA to another folder"
        ) from None
