"""Data sets in the format of Hugging Face's library `datasets`."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fl_lightning.data._files import DataError
from fl_lightning.data._frame import as_pandas, find
from fl_lightning.data._table import TableData

if TYPE_CHECKING:
    import pandas as pd


class HuggingFace(TableData):
    """A data set that `datasets.save_to_disk` has written, or one of the hub, as a table.

    Splits of the data set become its column `split`: set `split: split` to use them.

    Args:
        path: folder on disk, relative to the working folder or to the data folder; else a name on the hub, which is fetched.
        revision: of a data set on the hub: what a name means can change, a commit cannot.
    """

    name: ClassVar[str] = "hugging_face"

    path: str = Field(min_length=1)
    revision: str | None = None

    def read_table(self) -> "tuple[pd.DataFrame, Path]":
        """All splits, one after the other."""
        try:
            import datasets
        except ImportError:
            raise DataError("needs the library datasets: pip install 'fl-lightning[hugging_face]'", "name") from None
        try:
            folder = find(self.path)
        except DataError:
            folder = None
        try:
            if folder is not None:
                return as_pandas(datasets.load_from_disk(str(folder))), folder
            return as_pandas(datasets.load_dataset(self.path, revision=self.revision)), Path()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be had: {' '.join(str(error).split())}", "path") from None
