"""What backdoors without a trigger share: inputs as they are, picked from training and test split."""

import torch
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError


def require_class(data: Dataset, what: str, **classes: int) -> None:
    """Raise a ConfigError unless the data has classes, and these among them."""
    if data.task == "regression":
        raise ConfigError(f"{what} needs classes, got regression data")
    for field, value in classes.items():
        if value >= data.classes:
            raise ConfigError(f"must be a class of 0..{data.classes - 1}, got {value}", field)


def picked_goal(
    data: Dataset,
    train: Tensor,
    test: Tensor,
    label: int,
    shared: Samples | None = None,
    withheld: Tensor | None = None,
) -> Goal:
    """The goal that picked inputs be taken for `label`.

    Args:
        data: the data set.
        train: rows of the training split that every attacker holds.
        test: rows of the test split that success is measured on; the clean test set loses them.
        label: the wished class.
        shared: what attackers hold instead of the training rows as they are.
        withheld: rows of the training split that no client trains on under their right label; None: `train`.
    """
    x = data.train.x[train]
    shared = shared or Samples(x, torch.full((len(x),), label, device=x.device, dtype=data.train.y.dtype))
    wished = torch.full_like(data.test.y[test], label)
    return Goal(
        data.test.without(test),
        Samples(data.test.x[test], wished),
        data.test.y[test],
        shared=shared,
        withheld=train if withheld is None else withheld,
    )
