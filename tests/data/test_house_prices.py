"""The table of house prices: how columns become numbers."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from data_files import sha

from fl_lightning.data import HousePrices, _catalogue, _house_prices
from fl_lightning.data._files import Files, save

pytestmark = pytest.mark.usefixtures("data_folder")


def test_encoding_of_a_table():
    table = pd.DataFrame(
        {"Area": [1.0, 3.0, None, 100.0], "Zone": ["b", "a", None, "c"], "SalePrice": [10, 20, 30, 999]}
    )
    x, y = _house_prices.encode(table, torch.tensor([3]))
    # mean and standard deviation of 1, 3 and of 10, 20, 30: the test row (100, 999) has no say
    assert x[:, 0].tolist() == [-1, 1, 0, 98]
    assert x[:, 1:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert y[:3].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)


@pytest.fixture
def tiny_houses(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty houses under the name that the data folder also accepts."""
    head = "Id,Alley,PoolQC,Fence,MiscFeature,MasVnrType,Area,SalePrice"
    kinds = ["None", "NA", "Stone", "BrkFace"]
    lines = [f"{i},Grvl,Ex,MnPrv,Shed,{kinds[i % 4]},{1000 + 7 * i * i},{100000 + 900 * i}" for i in range(20)]
    content = "\n".join([head, *lines, ""]).encode()
    files = Files("house_prices", {"train.csv": sha(content)}, _catalogue.HOUSE_PRICES.layouts)
    monkeypatch.setattr(_house_prices, "HOUSE_PRICES", files)
    save(content, data_folder / "house-prices-train.csv")


def test_columns_of_house_prices(tiny_houses):
    dataset = HousePrices().load()
    assert dataset.shape == (3,)  # Area, and the two kinds of veneer; neither Id nor price
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert dataset.task == "regression"
    assert dataset.train.y.mean().abs() < 1e-6
    assert dataset.train.y.std(correction=0).sub(1).abs() < 1e-6
    assert HousePrices(drop_sparse=False).load().shape == (7,)
    assert HousePrices(none_category=True).load().shape == (4,)
    assert len(HousePrices(test_share=0.5, validation=3).load().test) == 7
