"""Momentum at the clients: what they send varies less from round to round, so that attacks inside of the variance stand out.

References:
    Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, algorithm 2.
    Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Byzantine Machine Learning Made Easy by Resilient Averaging of Momentums",
    ICML 2022.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, clients_of, population_of
from fl_lightning.defenses._verdicts import recalled, recalled_flags
from fl_lightning.registry import Tunable


def momentum(memory_CD: Tensor, seen_C: Tensor, updates_CD: Tensor, beta: float) -> Tensor:
    """m_i <- beta m_i + (1 - beta) x_i, and m_i = x_i for who was never there before.

    Args:
        memory_CD: `[C, D]` the momenta so far.
        seen_C: `[C]` bool, who has one.
        updates_CD: `[C, D]` updates x of this round.
        beta: from 0 to 1 (exclusive).

    Example:
        >>> momentum(torch.tensor([[1.0], [9.0]]), torch.tensor([True, False]), torch.tensor([[3.0], [3.0]]), 0.5)
        tensor([[2.],
                [3.]])
    """
    return torch.where(seen_C[:, None], torch.lerp(updates_CD, memory_CD, beta), updates_CD)


class ClientMomentum(Defense):
    """Every benign client sends the momentum of its updates in place of the last one.

    A client that is away keeps its momentum. By itself it stops nothing: it is there for a robust rule after it.

    Attributes:
        beta: share of the momentum so far.
        malicious_too: whether the malicious clients do so as well; attackers have no reason to.
        max_memory: limit of the memory in GiB.
    """

    name: ClassVar[str] = "client_momentum"
    cites: ClassVar[tuple[str, ...]] = ("karimireddy2021learning", "farhadkhani2022byzantine")
    at_clients: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    beta: Annotated[float, Tunable(0.1, 0.99)] = Field(default=0.9, ge=0, lt=1)
    malicious_too: bool = False
    max_memory: float = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay, as momenta."""
        population, clients_C = (
            population_of(updates_CD, context),
            clients_of(updates_CD, context).to(updates_CD.device),
        )
        memory_ND = recalled(state, "momenta", population, updates_CD.shape[1], updates_CD, self.max_memory)
        seen_N = recalled_flags(state, "seen", population, updates_CD.device)
        momenta_CD = momentum(memory_ND[clients_C], seen_N[clients_C], updates_CD, self.beta)
        memory_ND[clients_C], seen_N[clients_C] = momenta_CD, True
        everybody_C = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Verdict(everybody_C, context.weights_C, momenta_CD, None, {"momenta": memory_ND, "seen": seen_N})
