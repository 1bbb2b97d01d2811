"""The user's own LightningDataModule."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data._dataset import Data, Dataset, Inputs, Samples, Task
from fl_lightning.data._files import DataError
from fl_lightning.data._split import split
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import key_of
from fl_lightning.registry import import_class

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


class Datamodule(Data):
    """A LightningDataModule: its batches, drawn once into memory.

    Training samples come from `train_dataloader`, test samples from `test_dataloader`, or `val_dataloader` where there is no
    other; shuffling and random transforms are drawn once, from a fixed seed. Batches are `(x, y)`, with the owner third if
    there is one, or mappings of names to tensors.

    Args:
        module: `package.module:Class`.
        args: of its constructor.
        target: of batches that are mappings, which entry is the target.
        owner: which entry names each sample's owner; `2` for the third of a tuple.
        task: classification or regression.
    """

    name: ClassVar[str] = "datamodule"

    module: str
    args: dict[str, Any] = Field(default_factory=dict)
    target: str = "y"
    owner: str | int | None = None
    task: Task = "classification"

    def load(self) -> Dataset:
        """All batches of the loaders as tensors.

        Raises:
            ConfigError: there is no such class, or no loader of test samples.
            DataError: batches are not what was said.
        """
        from lightning.pytorch import LightningDataModule

        cls = import_class(self.module)
        if not (isinstance(cls, type) and issubclass(cls, LightningDataModule)):
            raise ConfigError(f"must be a LightningDataModule, got {cls!r}", "module")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(0, "datamodule"))
            module = cls(**self.args)
            module.prepare_data()
            module.setup("fit")
            train = self._drawn(module.train_dataloader(), "train_dataloader")
            test = self._drawn(self._test_loader(module), "test_dataloader")
        owner_names: tuple[str, ...] = ()
        if train.owner is not None:
            owner_names = tuple(map(str, range(int(train.owner.max()) + 1)))
        classes = 1 if self.task == "regression" else int(max(train.y.max(), test.y.max())) + 1
        dataset = Dataset(train, test, self.task, classes, owner_names=owner_names)
        return split(dataset, self.name, self.validation, None, None)

    def _test_loader(self, module: "LightningDataModule") -> Iterable[Any]:
        from lightning.pytorch import LightningDataModule

        for stage, loader in (("test", "test_dataloader"), ("fit", "val_dataloader")):
            if getattr(type(module), loader) is not getattr(LightningDataModule, loader):
                module.setup(stage)
                return getattr(module, loader)()  # type: ignore[no-any-return]
        raise ConfigError(f"{self.module} has neither test_dataloader nor val_dataloader", "module")

    def _drawn(self, batches: Iterable[Any], loader: str) -> Samples:
        parts = [self._parted(batch, loader) for batch in batches]
        if not parts:
            raise DataError(f"{loader} of {self.module} gives no batches")
        xs, ys, owners = zip(*parts, strict=True)
        y = torch.cat(ys)
        y = y.long() if self.task == "classification" else y.float()
        owner = None if owners[0] is None else torch.cat(owners).long()
        return Samples(stacked(xs), y, owner)

    def _parted(self, batch: Any, loader: str) -> tuple[Inputs, Tensor, Tensor | None]:
        try:
            if isinstance(batch, Mapping):
                rest = dict(batch)
                owner = None if self.owner is None else rest.pop(str(self.owner))
                y = rest.pop(self.target)
                return (rest if len(rest) > 1 else next(iter(rest.values()))), y, owner
            x, y = batch[:2]
            return x, y, None if self.owner is None else batch[int(self.owner)]
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(
                f"{loader} of {self.module}: a batch has no {error}; it is {type(batch).__name__}"
            ) from None


def stacked(parts: Iterable[Inputs]) -> Inputs:
    """Batches one after the other; texts of different lengths are padded with 0 behind."""
    batches = list(parts)
    if isinstance(batches[0], Mapping):
        return {name: stacked(batch[name] for batch in batches) for name in batches[0]}
    if batches[0].ndim == 2 and len({batch.shape[1] for batch in batches}) > 1:
        longest = max(batch.shape[1] for batch in batches)
        batches = [torch.nn.functional.pad(batch, (0, longest - batch.shape[1])) for batch in batches]
    return torch.cat(batches)
