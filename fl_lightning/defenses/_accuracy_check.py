"""Clustering-accuracy check: is the model with one update much worse than the model with all others?

References:
    Chen et al., "A multi-party targeted model poisoning attack against federated learning systems", section 3: eq. 3.
    Corrected here: F is read as an accuracy, as the text describes it; with losses the printed sign would be wrong.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.models import predict
from fl_lightning.registry import component


def others_mean(updates_CD: Tensor, weights_C: Tensor) -> Tensor:
    """`[C, D]` for each row the weighted mean of all others; a row without others is compared with itself."""
    if len(updates_CD) == 1:
        return updates_CD.clone()
    weights_C1 = weights_C.to(updates_CD)[:, None]
    total_D = (weights_C1 * updates_CD).sum(0)
    rest_C1 = weights_C1.sum() - weights_C1
    return (total_D - weights_C1 * updates_CD) / rest_C1.clamp(min=1e-12)


@component
class AccuracyCheck(Defense):
    """Flags a row if acc(w_G + mean of the others) - acc(w_G + the row) > gamma on the server's validation samples.

    Attributes:
        gamma: tolerated loss of accuracy, in [0, 1].
    """

    name: ClassVar[str] = "accuracy_check"
    gamma: float = Field(default=0.1, ge=0, le=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has validation samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The score is the loss of accuracy."""
        samples = need_validation(self.name, context.validation)

        def accuracy(update_D: Tensor) -> float:
            scores = context.predict(context.global_D + update_D, samples.x)
            return float((predict(scores) == samples.y).double().mean())

        pairs = zip(others_mean(updates_CD, context.weights_C), updates_CD, strict=True)
        gaps_C = updates_CD.new_tensor([accuracy(others_D) - accuracy(own_D) for others_D, own_D in pairs])
        return detected(updates_CD, context, gaps_C > self.gamma, gaps_C)
