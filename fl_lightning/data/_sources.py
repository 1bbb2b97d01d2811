"""Who delivers files: public mirrors.

Every source answers `fetch(files)` with contents, or soon raises `UnavailableError` with a short reason.
"""

import tarfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol, TypeVar

from fl_lightning.inputs import gunzip

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long a public server may take to answer at all: on a closed network the next source must be asked soon."""
TRANSFER_SECONDS = 300.0

DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What reading a broken file or archive raises."""


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


def download(url: str) -> bytes:
    """Content of an address.

    Raises:
        UnavailableError: refused or broken off, or an address that others on the way could read and change.
    """
    import pooch

    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise UnavailableError("only https is asked")

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
        return gunzip(content)
    except DAMAGED as error:
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
