"""What attacks share whose malicious clients send one crafted update."""

from abc import ABC
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack
from fl_lightning.attacks._copies import copies
from fl_lightning.attacks._known_rows import with_statistics
from fl_lightning.attacks._view import View

CEILING = 1e8
"""Largest norm of a crafted update, in units of the global model's (at least 1): what grows for ever stays a number."""


def bounded(rows_MD: Tensor, global_D: Tensor) -> Tensor:
    """The rows, those longer than 1e8 max(1, |G|) scaled down to it.

    Args:
        rows_MD: `[M, D]` crafted updates, finite.
        global_D: `[D]` the broadcast model; its type is what the rows must fit.
    """
    length = float(torch.linalg.vector_norm(global_D, dtype=torch.float64))
    ceiling = min(CEILING * max(1.0, length), torch.finfo(global_D.dtype).max / 2)
    lengths_M = torch.linalg.vector_norm(rows_MD, dim=1, keepdim=True, dtype=torch.float64)
    return torch.where(lengths_M > ceiling, rows_MD * (ceiling / lengths_M.clamp(min=1e-30)).to(rows_MD), rows_MD)


def sent(view: View, crafted_P: Tensor, mean_P: Tensor, *, spread: float = 0.0) -> Tensor:
    """`[M, D]` copies of crafted parameters with honest running statistics, no longer than the ceiling.

    Args:
        view: of the round.
        crafted_P: `[P]` crafted parameters.
        mean_P: `[P]` mean of the honest ones.
        spread: see `copies`.
    """
    rows_MP = copies(crafted_P, mean_P, view.n_malicious, spread=spread, generator=view.generator("copies"))
    return bounded(with_statistics(view, rows_MP), view.global_D)


class Crafted(Attack, ABC):
    """An attack whose malicious clients all send one crafted update, or near-copies of it.

    Attributes:
        spread: length of each client's random offset from the crafted update, relative to the distance of that from the honest
            mean; the offsets sum to 0. 0: exact copies, as in the papers; these are what checks for duplicates look for.
    """

    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    spread: float = Field(default=0.0, ge=0)

    def rows(self, view: View, crafted_P: Tensor, mean_P: Tensor) -> Tensor:
        """`[M, D]` what the malicious clients send.

        Args:
            view: of the round.
            crafted_P: `[P]` crafted parameters.
            mean_P: `[P]` mean of the honest ones.
        """
        return sent(view, crafted_P, mean_P, spread=self.spread)
