"""Zeno++, in rounds: a row counts, at the length of the server's own update, when it points far enough the same way.

References:
    Xie, Koyejo, Gupta, "Zeno++: Robust Fully Asynchronous SGD", ICML 2020, equation 3 and algorithm 1; here all rows of a
    round are judged together.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._root import root_rows, server_update
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Tunable


def zenopp_scores(along_C: Tensor, norms_C: Tensor, length: float, rho: float = 0.1, eps: float = 0.0) -> Tensor:
    """`[C]` float64, <r, y_i> - rho |y_i|^2 + eps with y_i = x_i |r| / n_i; a row counts when it is not negative.

    Args:
        along_C: `[C]` products <x_i, r>.
        norms_C: `[C]` norms of the updates; a row of zeros scores -inf.
        length: |r|.
        rho: the cosine from which on a row counts, when eps is 0.
        eps: slack.

    Example:
        >>> import torch
        >>> zenopp_scores(torch.tensor([2.0, -4.0]), torch.tensor([2.0, 4.0]), 1.0)
        tensor([ 0.9000, -1.1000], dtype=torch.float64)
    """
    norms_C = norms_C.double()
    scores_C = along_C.double() * length / norms_C.clamp(min=1e-300) - rho * length**2 + eps
    return scores_C.masked_fill(norms_C == 0, -float("inf"))


class Zenopp(Defense):
    """Keeps rows that point far enough the way of the server's own update, all at its length.

    Attributes:
        rho: least cosine, when eps is 0.
        eps: slack, in the unit of the squared length of the server's update.
        stale: rounds for which the server's update is used again; 0: a fresh one every round.
        root_samples: how many validation samples the server trains on, the same in all rounds.
    """

    name: ClassVar[str] = "zenopp"
    cites: ClassVar[tuple[str, ...]] = ("xie2020zenopp",)
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "skip"
    needs_samples: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    rho: Annotated[float, Tunable(0, 0.5)] = Field(default=0.1, ge=0)
    eps: float = Field(default=0.0, ge=0)
    stale: int = Field(default=0, ge=0)
    root_samples: int = Field(default=100, ge=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows that point elsewhere go; the round is skipped when all do. The score is minus the test's left side."""
        samples = need_validation(self.name, context.validation)
        rows = root_rows(self.name, context, state, self.root_samples)
        if "update" in state and context.round - state["round"] <= self.stale:
            trusted_D, made = state["update"].to(updates_CD), state["round"]
        else:
            trusted_D, made = server_update(self.name, context, samples[rows]), context.round
        geometry = geometry_of(updates_CD, context).trained
        length, norms_C = float(trusted_D.double().norm()), geometry.norms
        scores_C = zenopp_scores(geometry.products(trusted_D), norms_C, length, self.rho, self.eps)
        scale_C = torch.where(norms_C > 0, length / norms_C.clamp(min=1e-300), 0.0)
        return filtered(
            updates_CD,
            context,
            (scores_C >= 0) & (length > 0),
            scale_C=scale_C,
            scores_C=-scores_C,
            state={"root": rows, "update": trusted_D, "round": made},
            metrics={"norm": length, "age": float(context.round - made)},
            skip=True,
        )
