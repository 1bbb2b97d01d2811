"""Data sets, held in memory as tensors."""

from fl_lightning.data._cifar10 import Cifar10
from fl_lightning.data._data_module import Datamodule
from fl_lightning.data._dataset import (
    Data,
    Dataset,
    Inputs,
    Named,
    Samples,
    Task,
    alike,
    chosen_rows,
    differing,
    gathered,
    joined,
    moved,
    pieces,
    random_inputs,
    take,
)
from fl_lightning.data._digits import Digits
from fl_lightning.data._fashion_mnist import FashionMnist
from fl_lightning.data._femnist import Femnist
from fl_lightning.data._files import DataError
from fl_lightning.data._frame import Frame
from fl_lightning.data._house_prices import HousePrices
from fl_lightning.data._hugging_face import HuggingFace
from fl_lightning.data._mnist import Mnist
from fl_lightning.data._mnist_parity import MnistParity
from fl_lightning.data._site_images import ImageFolder
from fl_lightning.data._status import Status, get, locate, status
from fl_lightning.registry import Registry

REGISTRIES = {
    "data": Registry(
        "data",
        Data,
        [
            Cifar10,
            Datamodule,
            Digits,
            FashionMnist,
            Femnist,
            Frame,
            HousePrices,
            HuggingFace,
            ImageFolder,
            Mnist,
            MnistParity,
        ],
    )
}

__all__ = [
    "Cifar10",
    "Data",
    "DataError",
    "Datamodule",
    "Dataset",
    "Digits",
    "FashionMnist",
    "Femnist",
    "Frame",
    "HousePrices",
    "HuggingFace",
    "ImageFolder",
    "Inputs",
    "Mnist",
    "MnistParity",
    "Named",
    "Samples",
    "Status",
    "Task",
    "alike",
    "chosen_rows",
    "differing",
    "gathered",
    "get",
    "joined",
    "locate",
    "moved",
    "pieces",
    "random_inputs",
    "status",
    "take",
]
