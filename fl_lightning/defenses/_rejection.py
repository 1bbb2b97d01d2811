"""ERR and LFR: leave each update out once and remove those without which the model gets better on the server's samples.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 5: error rate based rejection, loss function based rejection, and their union.
"""

from abc import ABC
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Byzantine, Past, assumed
from fl_lightning.data import Samples
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected, fitting
from fl_lightning.errors import ConfigError
from fl_lightning.models import predict

T = TypeVar("T")


def need_validation(name: str, validation: T | None) -> T:
    """What was given, unless it is None: then a ConfigError that tells where samples come from."""
    if validation is None:
        raise ConfigError(f"{name} needs samples at the server: set data.validation to their number, such as 2000")
    return validation


def impacts(
    updates_CD: Tensor, aggregator: Aggregator, cost: Callable[[Tensor], float], past: Past | None = None
) -> Tensor:
    """How much the cost of the aggregated model falls when each row is left out.

    impact_i = cost(A(all rows)) - cost(A(all rows but i)). The rule keeps its `n_byzantine` where C - 1 rows allow it.

    Args:
        updates_CD: `[C, D]` finite.
        aggregator: the rule A.
        cost: cost of the model that an aggregated update `[D]` leads to.
        past: what the rule may know beside the rows.

    Returns:
        `[C]` float64; larger = more suspicious; all 0 for a single row.
    """
    n_rows = len(updates_CD)
    impact_C = torch.zeros(n_rows, dtype=torch.float64, device=updates_CD.device)
    if n_rows == 1:
        return impact_C
    reduced = fitting(aggregator, n_rows - 1)
    whole_D = fitting(aggregator, n_rows)(updates_CD, past=past).update
    costs = [(whole_D, cost(whole_D))]
    for row in range(n_rows):
        others = torch.arange(n_rows, device=updates_CD.device) != row
        part_D = reduced(updates_CD[others], past=past).update
        # A rule that selects a row gives few different models: do not evaluate one twice.
        known = next((value for model_D, value in costs[-2:] + costs[:1] if torch.equal(model_D, part_D)), None)
        if known is None:
            known = cost(part_D)
            costs.append((part_D, known))
            del costs[1:-1]
        impact_C[row] = costs[0][1] - known
    return impact_C


def largest(impact_C: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`[C]` bool, the `count` largest values; ties are broken at random, so that no client gains by its index."""
    order = torch.randperm(len(impact_C), generator=generator).to(impact_C.device)
    ranked = order[impact_C[order].sort(descending=True, stable=True).indices]
    return torch.zeros_like(impact_C, dtype=torch.bool).index_fill_(0, ranked[:count], True)


class Rejection(Defense, ABC):
    """Removes the updates without which the aggregated model does best on the server's validation samples.

    Attributes:
        n_byzantine: number of rows removed, less than the number of clients.
    """

    n_byzantine: Byzantine
    measures: ClassVar[tuple[str, ...]] = ()

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has validation samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows of largest impact by any of the measures go; the score is the largest standardised impact."""
        samples = need_validation(self.name, context.validation)
        flagged_C = torch.zeros(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        scores, count = [], assumed(self.n_byzantine, len(updates_CD))
        for measure in self.measures:
            impact_C = impacts(updates_CD, context.aggregator, _cost(measure, context, samples), context.past)
            flagged_C |= largest(impact_C, count, context.generator(measure))
            scores.append(impact_C / impact_C.std(correction=0).clamp(min=1e-12))
        return detected(updates_CD, context, flagged_C, torch.stack(scores).amax(0))


def _cost(measure: str, context: ServerContext, samples: Samples) -> Callable[[Tensor], float]:
    def error(update_D: Tensor) -> float:
        scores = context.predict(context.global_D + update_D, samples.x)
        return float((predict(scores) != samples.y).double().mean())

    def loss(update_D: Tensor) -> float:
        # A diverged model's loss is not a number; as the worst of all it stays comparable.
        value = float(context.losses(context.global_D + update_D, samples).double().mean())
        return min(value, 1e12) if value == value else 1e12

    return {"err": error, "lfr": loss}[measure]


class Err(Rejection):
    """Error rate based rejection: removes the rows that cost the most accuracy."""

    name: ClassVar[str] = "err"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)
    measures: ClassVar[tuple[str, ...]] = ("err",)


class Lfr(Rejection):
    """Loss function based rejection: removes the rows that cost the most loss."""

    name: ClassVar[str] = "lfr"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)
    measures: ClassVar[tuple[str, ...]] = ("lfr",)


class ErrLfr(Rejection):
    """Removes every row that ERR or LFR would remove."""

    name: ClassVar[str] = "err_lfr"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)
    measures: ClassVar[tuple[str, ...]] = ("err", "lfr")
