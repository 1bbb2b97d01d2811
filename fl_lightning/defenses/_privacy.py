"""Central and local differential privacy as defenses: clip, then noise, once at the server or at every client.

References:
    Naseri, Hayes, De Cristofaro, "Local and Central Differential Privacy for Robustness and Privacy in Federated Learning",
    NDSS 2022.
    Sun et al., "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated Learning from a Client
    Perspective", NeurIPS 2021, section 7.1 (clipping norm 5 for Fashion-MNIST, Laplace noise).
"""

from abc import ABC
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Mean
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._noise import Distribution, clip, epsilon, noise
from fl_lightning.registry import component


@component
class Privacy(Defense, ABC):
    """Clipping and noise.

    Attributes:
        max_norm: clipping norm.
        std: standard deviation of the noise on every coordinate, before `rate`.
        distribution: of the noise; a Laplace scale is std / sqrt(2).
        rate: factor on the noise. FL-WBC multiplies its noise by the clients' learning rate: give that rate here to compare on
            the same footing.
        delta: of the (epsilon, delta) that is reported for Gaussian noise.
    """

    max_norm: float = Field(default=5.0, gt=0)
    std: float = Field(default=0.1, ge=0)
    distribution: Distribution = "laplace"
    rate: float = Field(default=1.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)

    def private(
        self, updates_CD: Tensor, shape: torch.Size, context: ServerContext, sensitivity: float | None
    ) -> Verdict:
        """Clip every row, add noise of the given shape, and account for it."""
        std = self.std * self.rate
        noisy_CD = clip(updates_CD, self.max_norm)
        if std:
            noisy_CD += noise(shape, std, self.distribution, context.generator(self.name)).to(noisy_CD)
        metrics = {}
        if sensitivity is not None and std:
            spent = epsilon(sensitivity, std, context.round + 1, shape[-1], self.distribution, self.delta)
            metrics["epsilon"] = spent
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Verdict(everybody, context.weights_C, noisy_CD, None, {}, metrics)


@component
class Cdp(Privacy):
    """Central differential privacy: the server clips the updates and adds noise once to their aggregate.

    The same noise is added to every row, so that the aggregate of any translation-equivariant rule moves by it. An epsilon is
    reported for the mean only, whose sensitivity to replacing one client is known: 2 max_norm times its share of the weights.
    """

    name: ClassVar[str] = "cdp"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay."""
        share = float(context.weights_C.max() / context.weights_C.sum())
        sensitivity = 2 * self.max_norm * share if isinstance(context.aggregator, Mean) else None
        return self.private(updates_CD, updates_CD.shape[1:], context, sensitivity)


@component
class Ldp(Privacy):
    """Local differential privacy: every benign client clips its update and adds its own noise before anybody sees it.

    Attributes:
        malicious_too: whether the malicious clients do so as well; attackers have no reason to.
    """

    name: ClassVar[str] = "ldp"
    at_clients: ClassVar[bool] = True

    malicious_too: bool = False

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; a client's clipped update may change by 2 max_norm."""
        return self.private(updates_CD, updates_CD.shape, context, 2 * self.max_norm)
