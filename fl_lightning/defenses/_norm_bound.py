"""Norm bounding: no update is longer than the bound; a little noise on top of their aggregate is optional.

References:
    Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", 2019, section 5: norm thresholding and
    weak differential privacy.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._noise import bounding_norms, clip_factors, noised
from fl_lightning.registry import Tunable


class NormBound(Defense):
    """Scales long updates down to `max_norm`.

    Attributes:
        max_norm: bound on the Euclidean norm of an update.
        noise_std: standard deviation of the Gaussian noise on the parameters of the new model, after the server's step: neither
            its learning rate nor its optimizer touches it.
    """

    name: ClassVar[str] = "norm_bound"
    cites: ClassVar[tuple[str, ...]] = ("sun2019can",)
    max_norm: Annotated[float, Tunable(0.05, 10, log=True)] = Field(default=3.0, gt=0)
    noise_std: float = Field(default=0.0, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; the score is the norm before clipping."""
        norms_C = bounding_norms(updates_CD, context)
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        clipped = float((norms_C > self.max_norm).double().mean())
        factors_C = clip_factors(norms_C, self.max_norm).to(updates_CD)
        scores_C = norms_C.to(updates_CD.device, torch.promote_types(updates_CD.dtype, torch.float32))
        return Verdict(everybody, context.weights_C, None, scores_C, {}, {"clipped": clipped}, factors_C)

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The noise, on the parameters of the new model."""
        return noised(global_D, self.noise_std, "gaussian", context.generator("noise"), context.layout), state
