"""The command `fl-lightning data`: get data sets, list them, or show what one holds."""

import argparse

from rich.table import Table
from torch import Tensor

from fl_lightning import data as sets
from fl_lightning.cli._tables import wide_console
from fl_lightning.config import load
from fl_lightning.data import Data, Dataset, Samples
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.registry import named_config, registry


def data(options: argparse.Namespace) -> int:
    """Run a verb; returns the exit code.

    Raises:
        ConfigError: nothing is named where something must be, or something where nothing may.
    """
    console = wide_console()
    if options.verb == "list":
        if options.names:
            raise ConfigError("list takes no names, it shows all; to get some: fl-lightning data get NAME ...")
        console.print(_listed())
    elif not options.names:
        also = " or an experiment" if options.verb == "show" else ""
        raise ConfigError(f"name the data sets to {options.verb}{also}; `fl-lightning data list` shows them")
    elif options.verb == "get":
        for name in options.names:
            sets.get(name, lambda line: console.print(line, soft_wrap=True, highlight=False))
    else:
        for name in options.names:
            console.print(shown(name, data_of(name).load()))
    return 0


def data_of(name: str) -> Data:
    """The data called so, or those of the experiment called so.

    Raises:
        ConfigError: there is neither.
    """
    if name not in registry("data").names() and named_config("data", name) is None:
        return load(name).data
    with errors_under("data"):
        built: Data = registry("data").build(name)
    return built


def shown(name: str, dataset: Dataset) -> Table:
    """What a data set holds: samples, inputs, classes and their shares, owners and what they have."""
    table = Table(title=name, box=None, show_header=False, title_justify="left")
    parts = {"train": dataset.train, "test": dataset.test, "validation": dataset.validation}
    table.add_row("samples", ", ".join(f"{len(part):,} {kind}" for kind, part in parts.items() if part is not None))
    x = dataset.train.x
    for label, part in x.items() if isinstance(x, dict) else [("input", x)]:
        table.add_row("input" if label == "input" else f"input {label}", _described(part))
    if dataset.task == "regression":
        y = dataset.train.y
        table.add_row("target", f"regression, {float(y.min()):.3g} to {float(y.max()):.3g}")
    else:
        table.add_row("classes", _shares(dataset))
    if dataset.owners is not None:
        table.add_row("owners", _owners(dataset.train, len(dataset.owner_names)))
    if dataset.attributes:
        table.add_row("attributes", ", ".join(dataset.attributes))
    return table


def _described(part: Tensor) -> str:
    """Shape, type and range of an input."""
    shape, kind = "x".join(map(str, part.shape[1:])) or "1", str(part.dtype).removeprefix("torch.")
    if kind == "bool":
        return f"{shape} {kind}, {float(part.float().mean()):.0%} true"
    return f"{shape} {kind}, {float(part.min()):.3g} to {float(part.max()):.3g}"


def _shares(dataset: Dataset) -> str:
    """Number of classes, and the share of the training samples that each has."""
    counts = dataset.train.y.bincount(minlength=dataset.classes)
    names = dataset.class_names or tuple(map(str, range(dataset.classes)))
    shares = [f"{name} {int(count) / len(dataset.train):.0%}" for name, count in zip(names, counts, strict=True)]
    return f"{dataset.classes}: " + ", ".join(shares[:12]) + (", ..." if len(shares) > 12 else "")


def _owners(train: Samples, known: int) -> str:
    """Number of owners, and how many training samples they have."""
    owner = train.owner
    assert owner is not None
    counts = owner.bincount(minlength=known)
    counts = counts[counts > 0].sort().values
    middle = int(counts[len(counts) // 2])
    return f"{len(counts):,}, with {int(counts[0]):,} to {int(counts[-1]):,} training samples (median {middle:,})"


def _listed() -> Table:
    """Every shipped data set and where it lies."""
    table = Table("data set", "train", "test", "input", "classes", "where", box=None)
    for one in sets.status():
        kind = str(one.classes) if one.task == "classification" else one.task
        shape = "x".join(map(str, one.shape))
        where = one.where or f"not here; fl-lightning data get {one.name}"
        table.add_row(one.name, f"{one.train:,}", f"{one.test:,}", shape, kind, where)
    return table
