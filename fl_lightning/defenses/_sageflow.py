"""Sageflow: models that are unsure on the server's samples go, the others weigh less the larger their loss there.

References:
    Park, Han, Choi, Moon, "Sageflow: Robust Federated Learning against Both Stragglers and Adversaries", NeurIPS 2021, section 3:
    entropy-based filtering and loss-weighted averaging, in synchronous rounds.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.registry import Tunable


def mean_entropy(scores_nK: Tensor) -> float:
    """Mean entropy, in nats, of the probabilities that scores give; ln K when they are not numbers.

    Example:
        >>> round(mean_entropy(torch.zeros(3, 4)), 4)
        1.3863
    """
    logs_nK = scores_nK.double().log_softmax(1)
    entropy = float(-(logs_nK.exp() * logs_nK).sum(1).mean())
    return entropy if entropy == entropy else float(torch.tensor(float(scores_nK.shape[1])).log())


class Sageflow(Defense):
    """Removes models of large mean entropy on the server's samples, and weighs the others by their loss there.

    Weights are sample counts times loss^-delta.

    Attributes:
        max_entropy: in nats; K classes have ln K at most.
        delta: how strongly the loss counts.
    """

    name: ClassVar[str] = "sageflow"
    cites: ClassVar[tuple[str, ...]] = ("park2021sageflow",)
    needs_samples: ClassVar[bool] = True

    max_entropy: Annotated[float, Tunable(0.5, 5)] = Field(default=2.2, gt=0)
    delta: Annotated[float, Tunable(0.5, 10)] = Field(default=5.0, ge=0)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Unsure models go, unless all are unsure, as in the first rounds; the score is the entropy."""
        samples = need_validation(self.name, context.validation)
        models = [context.global_D + row_D for row_D in updates_CD]
        entropy_C = torch.tensor([mean_entropy(context.predict(theta_D, samples.x)) for theta_D in models])
        losses = [float(context.losses(theta_D, samples).double().mean()) for theta_D in models]
        losses_C = torch.tensor(losses, dtype=torch.float64).nan_to_num(nan=1e12, posinf=1e12).clamp(1e-6, 1e12)
        # relative to the smallest loss, so that no weight over- or underflows
        weights_C = (losses_C / losses_C.min()) ** -self.delta * context.weights_C.cpu().double()
        verdict = filtered(updates_CD, context, entropy_C <= self.max_entropy, scores_C=entropy_C)
        weights_C = weights_C.clamp(min=1e-30).to(context.weights_C)
        return verdict._replace(weights_C=weights_C)
