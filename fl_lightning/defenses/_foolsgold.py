"""FoolsGold: clients whose updates, summed over the rounds, point the same way count as one attacker and lose their weight.

References:
    Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020, algorithm 1.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Geometry
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, clients_of, population_of, trained_of
from fl_lightning.defenses._verdicts import classifier_columns, filtered, recalled
from fl_lightning.registry import Choice, Tunable


def foolsgold(cosines_CC: Tensor, kappa: float = 1.0) -> Tensor:
    """Weights between 0 and 1 from the cosines of the summed updates.

    With diagonal 0, m_i = max_j cos_ij + 1e-5; cos_ij <- cos_ij m_i / m_j where m_i < m_j (pardoning); v_i = 1 - max_j cos_ij in
    [0, 1], divided by the largest and cut at 0.99; weight = kappa (ln(v / (1 - v)) + 1/2) in [0, 1].

    Args:
        cosines_CC: `[C, C]`; the diagonal is not read.
        kappa: confidence, > 0.

    Returns:
        `[C]` float64; all 0 when nobody differs from the others.

    Example:
        >>> foolsgold(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        tensor([0., 0., 1.], dtype=torch.float64)
    """
    cosines_CC = cosines_CC.double().clone().fill_diagonal_(0)
    most_C = cosines_CC.amax(1) + 1e-5
    pardoned_CC = torch.where(most_C[:, None] < most_C, most_C[:, None] / most_C, 1.0)
    distinct_C = (1 - (cosines_CC * pardoned_CC).amax(1)).clamp(0, 1)
    # two copies of one row differ by no more than the rounding of their products
    distinct_C = torch.where(distinct_C > 1e-9, distinct_C, 0.0)
    if not bool(distinct_C.any()):
        return distinct_C
    share_C = (distinct_C / distinct_C.max()).clamp(max=0.99)
    return (kappa * (torch.log(share_C / (1 - share_C)) + 0.5)).clamp(0, 1)


class Foolsgold(Defense):
    """Takes weight from clients whose summed updates point the same way as another client's.

    The weights replace sample counts. A single attacker is never caught, and independent noise looks like the best of clients.

    Attributes:
        features: whether the classifier's columns are remembered, as printed, or all.
        kappa: confidence.
        normalise: whether the weights are divided by their sum; printed is the plain sum, whose step grows with it.
        max_memory: limit of the memory in GiB.
    """

    name: ClassVar[str] = "foolsgold"
    cites: ClassVar[tuple[str, ...]] = ("fung2020limitations",)
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "skip"
    needs_classifier: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    features: Annotated[Literal["last_layer", "all"], Choice(("last_layer", "all"))] = "last_layer"
    kappa: Annotated[float, Tunable(0.2, 5, log=True)] = Field(default=1.0, gt=0)
    normalise: bool = True
    max_memory: float = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows of weight 0 go; the round is skipped when all have it. The score is 1 minus the weight."""
        rows_CF = trained_of(updates_CD, context)
        if self.features == "last_layer":
            rows_CF = updates_CD[:, classifier_columns(context).to(updates_CD.device)]
        clients_C = clients_of(updates_CD, context).to(updates_CD.device)
        history_NF = recalled(
            state, "history", population_of(updates_CD, context), rows_CF.shape[1], rows_CF, self.max_memory
        )
        history_NF[clients_C] += rows_CF
        weights_C = foolsgold(Geometry(history_NF[clients_C]).cosines, self.kappa).to(context.weights_C)
        verdict = filtered(
            updates_CD,
            context,
            weights_C > 0,
            # the mean divides by the sum of the weights: this takes it back
            scale_C=None if self.normalise else weights_C.sum().expand(len(weights_C)),
            scores_C=1 - weights_C,
            state={"history": history_NF},
            skip=True,
        )
        return verdict._replace(weights_C=weights_C)
