"""Clustering-accuracy check: is the model with one update much worse than the model with all others?

References:
    Chen et al., "A multi-party targeted model poisoning attack against federated learning systems", section 3: eq. 3.
    Corrected here: F is read as an accuracy, as the text describes it; with losses the printed sign would be wrong.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, median
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.models import predict
from fl_lightning.registry import Tunable

Centre = Literal["median", "mean"]


def others_mean(updates_CD: Tensor, weights_C: Tensor) -> Tensor:
    """`[C, D]` for each row the weighted mean of all others; a row without others is compared with itself."""
    if len(updates_CD) == 1:
        return updates_CD.clone()
    weights_C1 = weights_C.to(updates_CD)[:, None]
    total_D = (weights_C1 * updates_CD).sum(0)
    rest_C1 = weights_C1.sum() - weights_C1
    return (total_D - weights_C1 * updates_CD) / rest_C1.clamp(min=1e-12)


def centres(updates_CD: Tensor, weights_C: Tensor, centre: Centre) -> Tensor:
    """`[C, D]` what each row is compared with: the median of all rows (a view), or the mean of the others."""
    if centre == "mean":
        return others_mean(updates_CD, weights_C)
    return median(updates_CD).expand_as(updates_CD)


class AccuracyCheck(Defense):
    """Flags a row if acc(w_G + centre) - acc(w_G + the row) > gamma on the server's validation samples.

    Attributes:
        gamma: tolerated loss of accuracy, in [0, 1].
        centre: `median`: the coordinate-wise median of all rows. `mean`: the mean of the others, as in the paper, whose model a
            single huge row ruins, so that nobody looks worse.
    """

    name: ClassVar[str] = "accuracy_check"
    cites: ClassVar[tuple[str, ...]] = ("chen2021multiparty",)
    gamma: Annotated[float, Tunable(0.01, 0.5, log=True)] = Field(default=0.1, ge=0, le=1)
    centre: Centre = "median"

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has validation samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The score is the loss of accuracy."""
        samples = need_validation(self.name, context.validation)

        def accuracy(update_D: Tensor) -> float:
            scores = context.predict(context.global_D + update_D, samples.x)
            return float((predict(scores) == samples.y).double().mean())

        if self.centre == "median":
            usual = [accuracy(median(updates_CD))] * len(updates_CD)
        else:
            usual = [accuracy(others_D) for others_D in others_mean(updates_CD, context.weights_C)]
        gaps_C = updates_CD.new_tensor([good - accuracy(row_D) for good, row_D in zip(usual, updates_CD, strict=True)])
        return detected(updates_CD, context, gaps_C > self.gamma, gaps_C)
