"""Three sigma: rows whose classifier moves unusually far from where the kept rows' went before.

References:
    Han, Buyukates, Hu, Jin, Jin, Sun, Wang, Wu, Xie, Yao, Zhang, Joe-Wong, Avestimehr, He, "FedSecurity: A Benchmark for Attacks
    and Defenses in Federated Learning and Federated LLMs", KDD 2024: the three-sigma defense of FedML.
    Corrected here: the bound is three standard deviations, not the program's half of one.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import direct_distances
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of, trained_columns
from fl_lightning.defenses._verdicts import classifier_columns, filtered
from fl_lightning.registry import Choice, Tunable


def usual_distances(scores_C: Tensor, past: Tensor, lam: float) -> Tensor:
    """`[C]` bool, distances up to mean + lam standard deviations of past ones, or of these where there are none.

    Among C numbers none lies more than (C - 1) / sqrt(C) deviations from their mean: in the first round, three deviations drop
    nobody of ten.

    Example:
        >>> usual_distances(torch.tensor([1.0, 9.0]), torch.tensor([1.0, 2.0, 3.0]), 3.0)
        tensor([ True, False])
    """
    known = past if len(past) else scores_C
    return scores_C <= known.mean() + lam * known.std(correction=0) + 1e-12 * known.abs().max()


class ThreeSigma(Defense):
    """Removes rows farther from the running centre of the kept rows than mean + lam deviations of the distances so far.

    The centre of the first round is the row nearest to all others.

    Attributes:
        lam: standard deviations.
        features: whether the classifier's columns are compared, or all.
    """

    name: ClassVar[str] = "three_sigma"
    cites: ClassVar[tuple[str, ...]] = ("han2024fedsecurity",)
    needs_classifier: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    lam: Annotated[float, Tunable(0.5, 5)] = Field(default=3.0, gt=0)
    features: Annotated[Literal["last_layer", "all"], Choice(("last_layer", "all"))] = "last_layer"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Far rows go; the score is the distance from the centre."""
        last = self.features == "last_layer"
        index = classifier_columns(context) if last else torch.arange(trained_columns(updates_CD, context).stop)
        rows_CF = geometry_of(updates_CD, context).trained.columns(index)
        if "centre" in state:
            centre_F, rounds, past = state["centre"].cpu(), int(state["rounds"]), state["distances"].cpu()
        else:
            centre_F, rounds, past = rows_CF[direct_distances(rows_CF).sum(1).argmin()], 0, rows_CF.new_empty(0)
        scores_C = (rows_CF - centre_F).norm(dim=1)
        keep_C = usual_distances(scores_C, past, self.lam)
        if bool(keep_C.any()):
            mean_F = rows_CF[keep_C].mean(0)
            centre_F = mean_F if rounds == 0 else (rounds * centre_F + mean_F) / (rounds + 1)
            rounds, past = rounds + 1, torch.cat([past, scores_C[keep_C]])
        remembered = {"centre": centre_F, "rounds": rounds, "distances": past}
        return filtered(updates_CD, context, keep_C, scores_C=scores_C, state=remembered)
