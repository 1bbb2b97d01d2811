"""One run, search or matrix as a file: packed here, unpacked in another runs folder, where it is as if it had been made there.

A pack is a ZIP of `pack.json` (runs, figures, models, versions, study, and the list of all files with their SHA-256) and the
artifacts. Unpacking executes nothing of it: JSON is checked field by field, files are written as they are.
"""

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_lightning import tracking
from fl_lightning.errors import ConfigError, excerpt
from fl_lightning.inputs import FileSum, check_listed, file_sum, read_member, unpack_member, zip_members
from fl_lightning.parallel import in_turn, interruptible
from fl_lightning.paths import embedded, is_file, runs_folder
from fl_lightning.search._packed import (
    PackedStudy,
    described_study,
    enter_study,
    finish_study,
    refuse_known_study,
    study_of_run,
)
from fl_lightning.tracking import PackedRuns

__all__ = ["Unpacked", "pack", "unpack"]

LIST = "pack.json"
MAX_LIST_BYTES = 2**28
SPARE_BYTES = 2**26
"""Left free on the disk beside what is unpacked."""


class Contents(BaseModel):
    """`pack.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fl_lightning pack 1"]
    made_by: dict[str, Annotated[str, Field(max_length=500)]]
    store: PackedRuns
    study: PackedStudy | None
    files: dict[str, FileSum]


@dataclass(frozen=True)
class Unpacked:
    """What a pack brought.

    Attributes:
        run_id: the run that was packed; all below it is here, too.
        runs: how many runs.
        models: how many models.
        study: name of the study, or None.
        trials: how many trials it has.
        renamed: `name/version` of the pack -> here, where that number was taken.
    """

    run_id: str
    runs: int
    models: int
    study: str | None
    trials: int
    renamed: dict[str, str]


@interruptible()
def pack(reference: str, path: Path) -> Path:
    """Write a run with all below it, its models and its study, to a file.

    Args:
        reference: a run, or the name of a study.
        path: the file; it must not exist.

    Raises:
        ConfigError: no such run, or the file cannot be written.
    """
    path = path.expanduser()
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} is there already; nothing is overwritten")
    if path.suffix != ".zip":
        raise ConfigError(f"a pack is a file that ends with .zip, got {excerpt(path.name)}")
    store = tracking.client(only_read=True)
    study, run_id = study_of_run(reference)
    if study and not (run_id and tracking.is_there(store, run_id)):
        raise ConfigError(f"the run of study {study} is not in {tracking.tracking_uri()}: there is nothing to pack")
    described = tracking.described(store, run_id or reference)
    with _writing(path) as folder:
        tracking.download(store, described, folder)
        files = {name: file_sum(file) for name, file in _files(folder)}
        contents = Contents(
            format="fl_lightning pack 1",
            made_by=tracking.environment() | {"revision": tracking.git_revision()},
            store=described,
            study=described_study(study) if study else None,
            files=files,
        )
        partial = folder / "pack.zip"
        with zipfile.ZipFile(partial, "x", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(LIST, contents.model_dump_json())
            for name in files:
                archive.write(folder / name, name)
        with zipfile.ZipFile(partial) as archive:
            _contents(archive)  # what cannot be unpacked is told here
        os.link(partial, path)  # unlike a rename this never replaces a file
    return path


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A folder beside a file to be, which is taken away afterwards."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pack-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise ConfigError(f"this cannot be packed: {error}") from None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder; links are none."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink():
            yield file.relative_to(folder).as_posix(), file


@interruptible()
def unpack(path: Path) -> Unpacked:
    """Take what a pack holds into the runs folder, with its ids; nothing there is overwritten.

    Args:
        path: what `pack` wrote.

    Raises:
        ConfigError: it is no pack, or damaged, or holds what is here already; nothing has changed then.
    """
    path = path.expanduser()
    if not is_file(path):
        raise ConfigError(f"no file {path}")
    if not embedded(tracking.tracking_uri()):
        raise ConfigError("a pack is taken into the embedded store only: unset MLFLOW_TRACKING_URI")
    with _told(path), zipfile.ZipFile(path) as archive:
        contents = _contents(archive)
        _check_room(contents)
        store = tracking.client()
        home = runs_folder()
        with in_turn(home / "unpack.lock"), tempfile.TemporaryDirectory(dir=home, prefix=".unpack-") as folder:
            tracking.refuse_known(store, contents.store)
            if contents.study:
                refuse_known_study(contents.study)
            members = zip_members(archive)
            for name, expected in contents.files.items():
                unpack_member(archive, members[name], Path(folder) / name, expected)
            renamed = _take_in(contents, Path(folder), home / "artifacts")
    trials = len(contents.study.trials) if contents.study else 0
    runs, models = contents.store.runs, contents.store.models
    study = contents.study.name if contents.study else None
    return Unpacked(runs[0].run_id, len(runs), len(models), study, trials, renamed)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever is wrong with a pack in one line."""
    try:
        yield
    except ConfigError as error:
        raise error.under(str(path)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} is no pack of fl_lightning, or damaged: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot unpack {path}: {error.strerror or error}") from None


def _contents(archive: zipfile.ZipFile) -> Contents:
    """The list of a pack, checked against its files."""
    members = zip_members(archive)
    if LIST not in members:
        raise zipfile.BadZipFile(f"it has no {LIST}")
    text = read_member(archive, members.pop(LIST), MAX_LIST_BYTES)
    try:
        contents = Contents.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise zipfile.BadZipFile(f"{LIST}, {where}: {first['msg']}") from None
    check_listed(members, contents.files)
    folders = tracking.places(contents.store)
    for name in contents.files:
        if "/".join(PurePosixPath(name).parts[:2]) not in folders or len(PurePosixPath(name).parts) < 3:
            raise zipfile.BadZipFile(f"{name!r} belongs to no run or model of it")
    return contents


def _check_room(contents: Contents) -> None:
    home = runs_folder()
    home.mkdir(parents=True, exist_ok=True)
    needed = sum(file.size for file in contents.files.values()) + SPARE_BYTES
    if shutil.disk_usage(home).free < needed:
        raise ConfigError(f"needs {needed:,} bytes, and {home} has room for {shutil.disk_usage(home).free:,}")


def _take_in(contents: Contents, folder: Path, artifacts: Path) -> dict[str, str]:
    """Files, then the study, then the runs: what is killed in between is found out by the next try, and done again."""
    made: list[Path] = []
    try:
        for source, target in tracking.places(contents.store).items():
            _move(folder / source, artifacts / target, made)
        if contents.study:
            enter_study(contents.study)
        renamed = tracking.enter(tracking.client(), contents.store)
    except BaseException:
        for file in made:
            with suppress(OSError):
                file.unlink()
        raise
    if contents.study:
        finish_study(contents.study.name)
    return renamed


def _move(source: Path, target: Path, made: list[Path]) -> None:
    """Move files to where they belong; one that a killed process has brought there already may stay.

    Raises:
        ConfigError: another file is there.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, file in _files(source):
        place = target / name
        if place.exists():
            if not place.is_file() or file_sum(place) != file_sum(file):
                raise ConfigError(f"{place} is there already, and another file; nothing is overwritten")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
        made.append(place)
