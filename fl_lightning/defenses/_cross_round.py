"""Cross-round check: a client whose update points another way than its last one is suspect.

References:
    Han, Buyukates, Hu, Jin, Jin, Sun, Wang, Wu, Xie, Yao, Zhang, Joe-Wong, Avestimehr, He, "FedSecurity: A Benchmark for Attacks
    and Defenses in Federated Learning and Federated LLMs", KDD 2024: the cross-round check of FedML. Here every client is
    compared with itself by its id, not by its place in the round.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import (
    Defense,
    ServerContext,
    State,
    Verdict,
    clients_of,
    population_of,
    trained_of,
)
from fl_lightning.defenses._verdicts import filtered, recalled, recalled_flags
from fl_lightning.registry import Tunable


def turned(previous_CD: Tensor, updates_CD: Tensor) -> Tensor:
    """`[C]` float64, cosines of the clients' updates with their last ones; 0 where either is zero.

    Example:
        >>> turned(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[-2.0, 0.0], [1.0, 0.0]]))
        tensor([-1.,  0.], dtype=torch.float64)
    """
    before_CD, now_CD = previous_CD.double(), updates_CD.double()
    lengths_C = before_CD.norm(dim=1) * now_CD.norm(dim=1)
    return torch.where(lengths_C > 0, (before_CD * now_CD).sum(1) / lengths_C.clamp(min=1e-300), 0.0)


class CrossRound(Defense):
    """Removes rows whose cosine with the same client's last update is below a bound.

    It sees who begins to attack or attacks now and then, not who attacks alike in every round; who was not there before is not
    judged. What is remembered of a client is what it sent last, also where that was dropped.

    Attributes:
        min_cosine: least cosine. Local noise makes honest updates turn, too, the more the closer the model is to a minimum: 0
            asks only for half of the space.
        max_memory: limit of the memory in GiB.
    """

    name: ClassVar[str] = "cross_round"
    cites: ClassVar[tuple[str, ...]] = ("han2024fedsecurity",)
    stateful: ClassVar[bool] = True

    min_cosine: Annotated[float, Tunable(-0.5, 0.5)] = Field(default=0.0, ge=-1, le=1)
    max_memory: float = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows that turned go; the score is minus the cosine, -1 for who is not judged."""
        rows_CD = trained_of(updates_CD, context)
        population, clients_C = (
            population_of(updates_CD, context),
            clients_of(updates_CD, context).to(updates_CD.device),
        )
        last_ND = recalled(state, "last", population, rows_CD.shape[1], rows_CD, self.max_memory)
        seen_N = recalled_flags(state, "seen", population, rows_CD.device)
        known_C = seen_N[clients_C]
        cosines_C = turned(last_ND[clients_C], rows_CD).masked_fill(~known_C, 1.0)
        last_ND[clients_C], seen_N[clients_C] = rows_CD, True
        return filtered(
            updates_CD,
            context,
            cosines_C >= self.min_cosine,
            scores_C=-cosines_C,
            state={"last": last_ND, "seen": seen_N},
            metrics={"judged": float(known_C.double().mean())},
        )
