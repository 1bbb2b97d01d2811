"""Tables of the user's own: rows with an owner, a target and features, token numbers or images."""

import io
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from fl_lightning.data._dataset import Data, Dataset, Samples, Task
from fl_lightning.data._files import DataError
from fl_lightning.data._split import split
from fl_lightning.errors import suggest
from fl_lightning.randomness import generator
from fl_lightning.registry import name_of

if TYPE_CHECKING:
    import pandas as pd


class Drawn(Protocol):
    """Data whose test set is drawn."""

    @property
    def test_share(self) -> float:
        """Share of the rows that are the test set."""


TRAIN, TEST, VALIDATION = ("train", "training"), ("test",), ("validation", "valid", "val", "dev")


class TableData(Data):
    """Rows of a table with a target, and whose they are.

    Args:
        target: column of the class (words or numbers), or of the number to be predicted.
        task: classification or regression; a regression target is standardised by the training rows.
        owner: column that names whose a row is, for the partition `natural`; None: nobody's.
        features: columns of numbers (standardised by the training rows) and categories (one column a value); None: all that
            are not named otherwise, unless there are `tokens` or an `image`.
        tokens: column of token numbers, a list or numbers with spaces between; padded with 0 behind.
        length: tokens of a text; longer ones are cut; None: of the longest.
        mask: hand the model `{"tokens": ids, "mask": true where a token is}` instead of the ids alone.
        image: column of image files, paths relative to the table, or their content.
        size: height and width that images are brought to; None: they have one size.
        missing: what to do about a number that is missing: `refuse` the row, or take the `mean` of the training rows.
        attributes: columns of numbers that are kept beside the inputs, for objectives that speak of them.
        split: column that says `train`, `test` or `validation`; None: `test_share` of every owner's rows, drawn once, are test.
        test_share: share of the rows that are the test set.
        train_samples: so many training samples, drawn at random, instead of all.
        test_samples: so many test samples, drawn at random, instead of all.
    """

    target: str
    task: Task = "classification"
    owner: str | None = None
    features: tuple[str, ...] | None = None
    tokens: str | None = None
    length: PositiveInt | None = None
    mask: bool = False
    image: str | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    missing: Literal["refuse", "mean"] = "refuse"
    attributes: tuple[str, ...] = ()
    split: str | None = None
    test_share: float = Field(default=0.2, gt=0, lt=1)
    train_samples: PositiveInt | None = None
    test_samples: PositiveInt | None = None

    first_row: ClassVar[int] = 1
    """Number by which errors call the first row."""

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> "TableData":
        if self.tokens is None and (self.mask or self.length):
            raise ValueError("mask and length speak of tokens, and no column of tokens is named")
        if self.image is None and self.size:
            raise ValueError("size speaks of images, and no column of images is named")
        return self

    @abstractmethod
    def read_table(self) -> "tuple[pd.DataFrame, Path]":
        """The table, and the folder that paths in it are relative to.

        Raises:
            DataError: it cannot be read.
        """

    def load(self) -> Dataset:
        """The table as tensors.

        Raises:
            DataError: it cannot be read, or a row is not what was said; names the row.
        """
        table, folder = self.read_table()
        dataset = encoded(table, self, folder)
        held = 0 if dataset.validation is not None else self.validation
        name = name_of(type(self))
        capped = split(dataset, name, held, self.train_samples, self.test_samples)
        return capped if held else Dataset(**{**vars_of(capped), "validation": dataset.validation})


def vars_of(dataset: Dataset) -> dict[str, Any]:
    """The fields of a data set."""
    names = ("train", "test", "task", "classes", "validation", "limits", "owner_names", "class_names")
    return {name: getattr(dataset, name) for name in names}


def encoded(table: "pd.DataFrame", settings: TableData, folder: Path) -> Dataset:
    """Rows as tensors.

    Raises:
        DataError: a column is missing, or a row is not what was said; names the row.
    """
    rows = Rows(table.reset_index(drop=True), settings.first_row)
    for column in (settings.target, settings.owner, settings.tokens, settings.image, settings.split):
        if column is not None:
            rows.require(column)
    for column in (*(settings.features or ()), *settings.attributes):
        rows.require(column)
    owners, names = owners_of(rows, settings.owner)
    parts = split_rows(rows, settings, owners)
    y, classes = targets(rows, settings, parts)
    x = inputs(rows, settings, parts[0], folder)
    known = {column: torch.tensor(rows.numbers(column)) for column in settings.attributes}
    everything = Samples(x, y, owners, known)
    warn_of_single_classes(everything, names, settings)
    train, test, validation = (everything[part] for part in parts)
    black = None
    if settings.image and not isinstance(x, dict):
        black = torch.zeros(x.shape[1], 1, 1)
    return Dataset(
        train,
        test,
        settings.task,
        len(classes) or 1,
        validation=validation if len(validation) else None,
        limits=None if black is None else (black, black + 1),
        owner_names=names,
        class_names=classes,
    )


class Rows:
    """A table whose errors name the row.

    Args:
        table: rows numbered from 0.
        first: what the first row is called.
    """

    def __init__(self, table: "pd.DataFrame", first: int):
        self.table, self.first = table, first

    def __len__(self) -> int:
        return len(self.table)

    def require(self, column: str) -> None:
        """Raise a DataError where there is no such column."""
        if column not in self.table.columns:
            raise DataError(f"no column {column!r}; {suggest(column, map(str, self.table.columns))}")

    def refuse(self, bad_n: Any, column: str, what: str) -> None:
        """Raise a DataError where any row is bad; names the first and counts the others."""
        bad = np.flatnonzero(np.asarray(bad_n, bool))
        if len(bad):
            value = self.table[column].iloc[bad[0]]
            shown = value.item() if isinstance(value, np.generic) else value
            more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
            raise DataError(f"row {bad[0] + self.first}: {column!r} {what}, got {shown!r}{more}")

    def numbers(self, column: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """A column of numbers, `[n]` float32; NaN where they are missing."""
        import pandas as pd

        values = pd.to_numeric(self.table[column], errors="coerce")
        self.refuse(values.isna() & self.table[column].notna(), column, "must be a number")
        self.refuse(np.isinf(values.to_numpy("float64", na_value=np.nan)), column, "must be finite")
        return values.to_numpy("float32", na_value=np.nan)


def owners_of(rows: Rows, column: str | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """`[n]` number of each row's owner, and the owners' names in their order."""
    if column is None:
        return None, ()
    rows.refuse(
        rows.table[column].isna() | (rows.table[column].astype(str).str.strip() == ""), column, "names no owner"
    )
    values = rows.table[column]
    names = sorted(values.unique().tolist(), key=lambda name: (isinstance(name, str), name))
    number = {name: index for index, name in enumerate(names)}
    return torch.tensor(values.map(number).tolist()), tuple(map(str, names))


def split_rows(rows: Rows, settings: TableData, owners: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted row numbers of training, test and validation set."""
    if settings.split is None:
        return (*drawn_split(len(rows), settings, owners), torch.empty(0, dtype=torch.long))
    words = rows.table[settings.split].astype(str).str.strip().str.lower()
    known = (*TRAIN, *TEST, *VALIDATION)
    rows.refuse(~words.isin(known), settings.split, "must be train, test or validation")
    train, test, validation = (torch.from_numpy(np.flatnonzero(words.isin(kind))) for kind in (TRAIN, TEST, VALIDATION))
    if not len(train) or not len(test):
        raise DataError(
            f"{len(train)} rows are for training and {len(test)} for test, some of each are needed", settings.split
        )
    return train, test, validation


def drawn_split(n: int, settings: "Drawn", owners: Tensor | None) -> tuple[Tensor, Tensor]:
    """`test_share` of each owner's rows as test set, of a single row none; the draw is the same for all experiments."""
    of = torch.zeros(n, dtype=torch.long) if owners is None else owners
    order = torch.randperm(n, generator=generator(0, "data", name_of(type(settings)), "split"))
    by_owner = order[of[order].argsort(stable=True)]
    counts = of.bincount()
    rank = torch.arange(n) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    tested = rank < (settings.test_share * counts).round().clamp(max=counts - 1).repeat_interleave(counts)
    if not bool(tested.any()):
        raise DataError(f"{n} rows of {len(counts)} owners leave no test set with test_share={settings.test_share}")
    return by_owner[~tested].sort().values, by_owner[tested].sort().values


def targets(rows: Rows, settings: TableData, parts: Sequence[Tensor]) -> tuple[Tensor, tuple[str, ...]]:
    """`[n]` classes and their names, or standardised numbers and none."""
    column = settings.target
    rows.refuse(rows.table[column].isna(), column, "is missing")
    if settings.task == "regression":
        numbers = rows.numbers(column).astype("float64")
        train = numbers[parts[0].numpy()]
        return torch.from_numpy(((numbers - train.mean()) / (train.std() or 1.0)).astype("float32")), ()
    values = rows.table[column]
    if values.dtype.kind == "f":
        rows.refuse(values % 1 != 0, column, "is no class (for numbers to be predicted set task: regression)")
        values = values.astype("int64")
    names = sorted(values.iloc[parts[0].numpy()].unique().tolist(), key=lambda name: (isinstance(name, str), name))
    if len(names) < 2:
        raise DataError(f"the training rows have one class only, {names}", column)
    number = {name: index for index, name in enumerate(names)}
    y = values.map(number)
    rows.refuse(y.isna(), column, "is a class that no training row has")
    return torch.tensor(y.tolist(), dtype=torch.long), tuple(map(str, names))


def inputs(rows: Rows, settings: TableData, train: Tensor, folder: Path) -> Any:
    """One tensor, or several by name where rows hold more than one kind of input."""
    parts: dict[str, Tensor] = {}
    columns = settings.features
    if columns is None and settings.tokens is None and settings.image is None:
        taken = {settings.target, settings.owner, settings.split, *settings.attributes}
        columns = tuple(column for column in rows.table.columns if column not in taken)
    if columns:
        parts["features"] = features(rows, columns, settings.missing, train)
    if settings.tokens is not None:
        parts["tokens"], mask = tokens(rows, settings.tokens, settings.length)
        if settings.mask:
            parts["mask"] = mask
    if settings.image is not None:
        parts["image"] = images(rows, settings.image, settings.size, folder)
    if not parts:
        raise DataError("no column is left for the model to look at", "features")
    return next(iter(parts.values())) if len(parts) == 1 else parts


def features(rows: Rows, columns: Sequence[str], missing: str, train: Tensor) -> Tensor:
    """`[n, F]`: numbers minus the training mean over the training deviation, then a column for every category.

    A category that no training row has, or that is missing, is 0 in all its columns.
    """
    table, kept = rows.table, train.numpy()
    blocks, categories = [], []
    for column in columns:
        if table[column].dtype.kind not in "biuf":
            categories.append(column)
            continue
        values = rows.numbers(column).astype("float64")
        if missing == "refuse":
            rows.refuse(np.isnan(values), column, "is missing (or set missing: mean)")
        center, spread = np.nanmean(values[kept]), np.nanstd(values[kept])
        blocks.append(np.nan_to_num((values - center) / (spread or 1.0))[:, None])
    for column in categories:
        if missing == "refuse":
            rows.refuse(table[column].isna(), column, "is missing (or set missing: mean)")
        words = table[column].astype(str).to_numpy(str)
        known = np.unique(table[column].iloc[kept].dropna().astype(str).to_numpy(str))
        blocks.append((words[:, None] == known).astype("float64"))
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype("float32"))


def tokens(rows: Rows, column: str, length: int | None) -> tuple[Tensor, Tensor]:
    """`[n, length]` int64 token numbers padded with 0, and `[n, length]` bool, where a token is."""

    def parsed(value: Any) -> list[int] | None:
        try:
            words = value.split() if isinstance(value, str) else list(value)
            return [int(word) for word in words]
        except (TypeError, ValueError):
            return None

    texts = [parsed(value) for value in rows.table[column]]
    rows.refuse([not text or min(text) < 0 for text in texts], column, "must hold token numbers, 0 or more")
    longest = length or max(len(text or ()) for text in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        kept = (text or [])[:longest]
        ids[row, : len(kept)] = torch.tensor(kept)
        mask[row, : len(kept)] = True
    return ids, mask


def images(rows: Rows, column: str, size: tuple[int, int] | None, folder: Path) -> Tensor:
    """`[n, 3, height, width]` pixels in [0, 1]."""
    from PIL import Image, UnidentifiedImageError

    found: list[Any] = []
    for value in rows.table[column]:
        content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
        try:
            with Image.open(folder / content if isinstance(content, str) else io.BytesIO(content or b"")) as image:
                plain = image.convert("RGB")
                resized = plain.resize((size[1], size[0])) if size else plain
                found.append(np.asarray(resized, np.uint8).transpose(2, 0, 1))
        except (OSError, TypeError, UnidentifiedImageError):
            found.append(None)
    rows.refuse([one is None for one in found], column, "is no image that can be read")
    sizes = sorted({one.shape[1:] for one in found})
    if len(sizes) > 1:
        raise DataError(f"images have the sizes {sizes[:3]}: set size to bring them to one", column)
    return torch.from_numpy(np.stack(found)).float() / 255


def warn_of_single_classes(samples: Samples, names: tuple[str, ...], settings: TableData) -> None:
    """Say which owners have samples of one class only: they pull every average towards it."""
    if samples.owner is None or settings.task == "regression":
        return
    classes = int(samples.y.max()) + 1
    counted = torch.zeros(len(names), classes)
    counted.index_put_((samples.owner, samples.y), torch.ones(len(samples)), accumulate=True)
    single = torch.nonzero((counted > 0).sum(1) == 1).flatten().tolist()
    if single:
        first = int(torch.nonzero(samples.owner == single[0])[0]) + settings.first_row
        more = f" and {len(single) - 1} more owners" if len(single) > 1 else ""
        logging.getLogger("fl_lightning").warning(
            "owner %r%s: samples of one class only (row %d)", names[single[0]], more, first
        )
