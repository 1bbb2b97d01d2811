"""House prices: a regression table, one-hot encoded.

References:
    D. De Cock. Ames, Iowa: Alternative to the Boston Housing Data as an End of Semester Regression Project. Journal of
    Statistics Education 19(3), 2011. (The 1460 training rows of Kaggle's "House Prices" competition.)
"""

import io
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data._catalogue import HOUSE_PRICES
from fl_lightning.data._dataset import Dataset, Samples, Task
from fl_lightning.data._files import Files, Folder
from fl_lightning.data._split import SYNTHETIC, SplitData, draw
from fl_lightning.randomness import generator

if TYPE_CHECKING:
    import pandas as pd

SPARSE = ("Alley", "PoolQC", "Fence", "MiscFeature")
TARGET = "SalePrice"


def encode(table: "pd.DataFrame", test: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot columns and standardised numbers; the statistics come from the training rows only.

    Numbers become (v - mean_train) / std_train and 0, the mean, where they are missing. A category becomes one column
    a value, all 0 where it is missing. The target is standardised like the numbers.

    Args:
        table: features and the column `SalePrice`.
        test: indices of the rows whose statistics must not be used.

    Returns:
        x `[n, columns]` and y `[n]`, float32.
    """
    import pandas as pd

    numbers = table.select_dtypes("number").columns
    train = table[numbers].drop(index=test.tolist())
    scaled = ((table[numbers] - train.mean()) / train.std(ddof=0).replace(0, 1)).fillna(0.0)
    words = pd.get_dummies(table.drop(columns=numbers), dtype=float)
    x = pd.concat([scaled.drop(columns=TARGET), words], axis=1).to_numpy("float32")
    return torch.from_numpy(x), torch.from_numpy(scaled[TARGET].to_numpy("float32"))


class HousePrices(SplitData):
    """1460 houses sold in Ames, Iowa: 274 columns, and the price, standardised, to be predicted.

    Args:
        test_share: share of the rows that are the test set.
        drop_sparse: leave out Alley, PoolQC, Fence and MiscFeature, missing in over 80 % of the rows: 274 columns;
            with them 287.
        none_category: "None" (no masonry veneer) is a category of its own instead of a missing value: one column more.
    """

    name: ClassVar[str] = "house_prices"
    cites: ClassVar[tuple[str, ...]] = ("decock2011ames",)
    places: ClassVar[tuple[Files | Folder, ...]] = (HOUSE_PRICES,)
    sizes: ClassVar[tuple[int, int]] = (1168, 292)
    shape: ClassVar[tuple[int, ...]] = (274,)
    classes: ClassVar[int] = 1
    task: ClassVar[Task] = "regression"

    test_share: float = Field(default=0.2, gt=0, lt=1)
    drop_sparse: bool = True
    none_category: bool = False

    def read(self) -> Dataset:
        """The table, encoded; the test rows are drawn once for all experiments."""
        import pandas as pd

        (content,) = HOUSE_PRICES.read().values()
        missing = ["NA"] if self.none_category else ["NA", "None"]
        table = pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=missing)
        table = table.drop(columns=["Id", *(SPARSE if self.drop_sparse else ())])
        test = draw(len(table), round(self.test_share * len(table)), self.name, "split")
        samples = Samples(*encode(table, test))
        return Dataset(samples.without(test), samples[test], "regression", 1)

    def stand_in(self) -> Dataset:
        """A linear map of standard normal columns plus noise: y = x w + 0.1 noise, with |w| = 1."""
        random = generator(0, "synthetic", self.name)
        columns = 274 + 13 * (not self.drop_sparse) + self.none_category
        x = torch.randn(sum(SYNTHETIC), columns, generator=random)
        slope = torch.nn.functional.normalize(torch.randn(columns, generator=random), dim=0)
        y = x @ slope + 0.1 * torch.randn(len(x), generator=random)
        samples = Samples(x, y)
        test = torch.arange(SYNTHETIC[0], len(x))
        return Dataset(samples.without(test), samples[test], "regression", 1)
