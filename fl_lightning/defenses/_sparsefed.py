"""SparseFed: only the largest coordinates of the aggregated step are taken; what is left out waits for later rounds.

References:
    Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal, "SparseFed: Mitigating Model Poisoning Attacks in Federated Learning with
    Sparsification", AISTATS 2022, algorithm 1.
"""

from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._spread import count, shortening
from fl_lightning.defenses._verdicts import filtered, trained_slice
from fl_lightning.registry import Tunable


class Sparse(NamedTuple):
    """A step and what it leaves behind.

    Attributes:
        step_D: `[D]` the largest coordinates, 0 elsewhere.
        error_D: `[D]` the others.
    """

    step_D: Tensor
    error_D: Tensor


def largest_coordinates(step_D: Tensor, share: float) -> Sparse:
    """A vector split into its share of largest coordinates and the rest.

    Example:
        >>> largest_coordinates(torch.tensor([3.0, -5.0, 1.0, 2.0]), 0.5).step_D
        tensor([ 3., -5.,  0.,  0.])
    """
    columns = step_D.abs().topk(count(share, len(step_D)), sorted=False).indices
    taken_D = torch.zeros_like(step_D)
    taken_D[columns] = step_D[columns]
    return Sparse(taken_D, step_D - taken_D)


class Sparsefed(Defense):
    """Clips rows, and lets only the largest coordinates of the step, errors of the rounds before included, move the model.

    Attributes:
        max_norm: bound on the norm of an update.
        share: of the coordinates that move in a round.
    """

    name: ClassVar[str] = "sparsefed"
    cites: ClassVar[tuple[str, ...]] = ("panda2022sparsefed",)
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    max_norm: Annotated[float, Tunable(0.05, 10, log=True)] = Field(default=3.0, gt=0)
    share: Annotated[float, Tunable(0.01, 0.9, log=True)] = Field(default=0.1, gt=0, le=1)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay, clipped; the score is the norm before."""
        norms_C = geometry_of(updates_CD, context).trained.norms
        everybody_C = torch.ones(len(updates_CD), dtype=torch.bool)
        scale_C = shortening(norms_C, self.max_norm)
        metrics = {"clipped": float((norms_C > self.max_norm).double().mean())}
        return filtered(
            updates_CD, context, everybody_C, scale_C=scale_C, scores_C=norms_C, state=state, metrics=metrics
        )

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The model moves along the largest coordinates only; the rest is remembered."""
        trained = trained_slice(context)
        wanted_D = (global_D - context.global_D)[trained]
        if "error" in state:
            wanted_D = wanted_D + state["error"].to(wanted_D)
        sparse = largest_coordinates(wanted_D, self.share)
        model_D = global_D.clone()
        model_D[trained] = context.global_D[trained] + sparse.step_D
        return model_D, {"error": sparse.error_D}
