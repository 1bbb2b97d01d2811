"""Norm bounding: no update is longer than the bound; a little noise on top of their aggregate is optional.

References:
    Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", 2019, section 5: norm thresholding and
    weak differential privacy.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._noise import clip, noise
from fl_lightning.registry import component


@component
class NormBound(Defense):
    """Scales long updates down to `max_norm`.

    Attributes:
        max_norm: bound on the Euclidean norm of an update.
        noise_std: standard deviation of one Gaussian vector that is added to every row alike, so that the aggregate of any
            translation-equivariant rule moves by it.
    """

    name: ClassVar[str] = "norm_bound"
    max_norm: float = Field(default=3.0, gt=0)
    noise_std: float = Field(default=0.0, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; the score is the norm before clipping."""
        norms_C = updates_CD.norm(dim=1)
        bounded_CD = clip(updates_CD, self.max_norm)
        if self.noise_std:
            bounded_CD += noise(updates_CD.shape[1:], self.noise_std, "gaussian", context.generator("noise")).to(
                bounded_CD
            )
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        clipped = float((norms_C > self.max_norm).double().mean())
        return Verdict(everybody, context.weights_C, bounded_CD, norms_C, {}, {"clipped": clipped})
