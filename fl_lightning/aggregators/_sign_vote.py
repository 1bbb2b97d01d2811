"""Majority vote of the signs: every coordinate moves by the same amount, in the direction that most clients ask for.

References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote is communication efficient and fault tolerant", ICLR
    2019, algorithm 1.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._mean import mean
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._signs import agreeing, sign_sums, trained_columns


def sign_vote(updates_CD: Tensor, lr: float) -> Tensor:
    """Lr * sign(sum_i sign(x_i)); ties give 0.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        lr: the step of every coordinate, > 0.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> sign_vote(torch.tensor([[1.0, 5.0], [2.0, -3.0], [-3.0, 0.0]]), 0.5)
        tensor([0.5000, 0.0000])
    """
    return (lr * sign_sums(updates_CD).sign()).to(updates_CD.dtype)


class SignVote(Aggregator):
    """Every coordinate moves by `lr` in the direction of the majority; running statistics are averaged; weights count there only.

    Attributes:
        lr: the step; its natural size is the median entry of the updates. Give either this or `scale: median`.
        scale: `median`: the step is the median absolute entry of the round's updates.
    """

    name: ClassVar[str] = "sign_vote"
    cites: ClassVar[tuple[str, ...]] = ("bernstein2019signsgd",)
    uses_past: ClassVar[bool] = True
    translation_equivariant: ClassVar[bool] = False
    returns_equal_rows: ClassVar[bool] = False

    lr: float | None = Field(default=None, gt=0)
    scale: Literal["fixed", "median"] = "fixed"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.lr is None) == (self.scale == "fixed"):
            raise ValueError(f"give either lr or scale: median, got lr={self.lr}, scale={self.scale}")
        return self

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Only where the step follows the updates."""
        return self.scale == "median"

    def step(self, updates_CD: Tensor) -> float:
        """How far every coordinate moves."""
        return float(updates_CD.abs().float().median()) if self.lr is None else self.lr

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """Every row has a vote."""
        trained = trained_columns((past or Past()).layout, updates_CD.shape[1])
        part_CD = updates_CD[:, trained]
        update_D = sign_vote(part_CD, self.step(part_CD))
        if trained.stop < updates_CD.shape[1]:
            update_D = torch.cat([update_D, mean(updates_CD[:, trained.stop :], weights_C)])
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(update_D, everybody)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """Share of the votes that agree with the result."""
        trained = trained_columns((past or Past()).layout, updates_CD.shape[1])
        direction_D = sign_sums(updates_CD[:, trained])
        return agreeing(updates_CD[:, trained], direction_D).to(torch.promote_types(updates_CD.dtype, torch.float32))
