"""A table of the user's own: CSV, Parquet, or a DataFrame."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from fl_lightning.data._files import DataError, save
from fl_lightning.data._table import TableData
from fl_lightning.paths import data_folder

if TYPE_CHECKING:
    import pandas as pd


class Frame(TableData):
    """A table with a target column and, for the partition `natural`, a column that names each row's owner.

    Args:
        path: CSV file (`.csv`, `.csv.gz`, `.tsv`) or Parquet, relative to the working folder or to the data folder; in Python
            also a pandas DataFrame or a Hugging Face data set, which is then kept as Parquet in the data folder.

    Example:
        >>> Frame(path="tickets.csv", owner="client_id", target="label", tokens="tokens", length=32).owner
        'client_id'
    """

    name: ClassVar[str] = "frame"
    first_row: ClassVar[int] = 1

    path: str = Field(min_length=1)

    @field_validator("path", mode="before")
    @classmethod
    def _kept(cls, value: Any) -> Any:
        return str(value) if isinstance(value, str | Path) else keep(value)

    def read_table(self) -> "tuple[pd.DataFrame, Path]":
        """The rows, in the order of the file."""
        import pandas as pd

        path = find(self.path)
        try:
            if path.suffix == ".parquet":
                return pd.read_parquet(path), path.parent
            separator = "\t" if ".tsv" in path.suffixes else ","
            return pd.read_csv(path, sep=separator), path.parent
        except (
            OSError,
            ValueError,
            ImportError,
        ) as error:  # what pandas raises for content that is no table is a ValueError
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}", "path") from None


def find(path: str) -> Path:
    """A file or folder of the user's, relative to the working folder or to the data folder.

    Raises:
        DataError: it is in neither.
    """
    places = [Path(path).expanduser(), data_folder() / path]
    for place in places:
        if place.exists():
            return place.resolve()
    raise DataError(f"not found: {' nor '.join(str(place.absolute()) for place in places)}", "path")


def keep(table: Any) -> str:
    """Write a table in memory into the data folder, named after its content, so that other processes can read it.

    Raises:
        DataError: it is no table.
    """
    frame = as_pandas(table)
    content = io.BytesIO()
    try:
        frame.to_parquet(content, index=False)
    except ImportError:
        raise DataError(
            "a table in memory is kept as Parquet: pip install pyarrow, or give a CSV file", "path"
        ) from None
    path = data_folder() / "frames" / f"{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.parquet"
    if not path.is_file():
        save(content.getvalue(), path)
    return str(path)


def as_pandas(table: Any) -> "pd.DataFrame":
    """A DataFrame, a Hugging Face data set, or several of these by split, as one DataFrame.

    Raises:
        DataError: it is none of these.
    """
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return table
    if hasattr(table, "to_pandas"):
        return pd.DataFrame(table.to_pandas())
    if isinstance(table, dict) and table:  # a DatasetDict
        return pd.concat([as_pandas(part).assign(split=name) for name, part in table.items()], ignore_index=True)
    raise DataError(f"expected a file, a DataFrame or a Hugging Face data set, got {type(table).__name__}")
