"""Central and local differential privacy as defenses: clip, then noise, once at the server or at every client.

References:
    Naseri, Hayes, De Cristofaro, "Local and Central Differential Privacy for Robustness and Privacy in Federated Learning",
    NDSS 2022.
    Sun et al., "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated Learning from a Client
    Perspective", NeurIPS 2021, section 7.1 (clipping norm 5 for Fashion-MNIST, Laplace noise).
"""

from abc import ABC
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Mean
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._noise import Distribution, clip, epsilon, epsilon_rdp, noise
from fl_lightning.errors import ConfigError
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
        accountant: `exact`: composition in closed form, neighbours replace one client, who takes part in every round. `rdp`,
            for Gaussian noise: Opacus' Rényi accountant, neighbours add or remove one client, who takes part in each round with
            the probability that the participation gives (CDP; LDP is not amplified, as the server sees who takes part).
    """

    max_norm: float = Field(default=5.0, gt=0)
    std: float = Field(default=0.1, ge=0)
    distribution: Distribution = "laplace"
    rate: float = Field(default=1.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    accountant: Literal["exact", "rdp"] = "exact"

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The accountant fits the noise and is there."""
        if self.accountant == "rdp":
            if self.distribution != "gaussian":
                raise ConfigError(f"rdp needs distribution gaussian, got {self.distribution!r}", "accountant")
            epsilon_rdp(1.0, 1.0, 1, self.delta, orders=12)

    def private(
        self,
        updates_CD: Tensor,
        shape: torch.Size,
        context: ServerContext,
        reach: float | None,
        sample_rate: float = 1.0,
    ) -> Verdict:
        """Clip every row, add noise of the given shape, and account for it.

        Args:
            updates_CD: `[C, D]`.
            shape: of the noise.
            context: random numbers and round.
            reach: how far one client's presence can move what is released; None: not known, no epsilon.
            sample_rate: its probability of taking part in a round.
        """
        std = self.std * self.rate
        noisy_CD = clip(updates_CD, self.max_norm)
        if std:
            noisy_CD += noise(shape, std, self.distribution, context.generator(self.name)).to(noisy_CD)
        metrics = {}
        if reach is not None and std:
            releases = context.round + 1
            if self.accountant == "rdp":
                spent = epsilon_rdp(reach, std, releases, self.delta, sample_rate)
            else:
                spent = epsilon(2 * reach, std, releases, shape[-1], self.distribution, self.delta)
            metrics["epsilon"] = spent
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Verdict(everybody, context.weights_C, noisy_CD, None, {}, metrics)


@component
class Cdp(Privacy):
    """Central differential privacy: the server clips the updates and adds noise once to their aggregate.

    The same noise is added to every row, so that the aggregate of any translation-equivariant rule moves by it. An epsilon is
    reported for the mean only, whose sensitivity is known: max_norm times a client's share of the weights, twice that when one
    client is replaced by another.
    """

    name: ClassVar[str] = "cdp"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay."""
        share = float(context.weights_C.max() / context.weights_C.sum())
        reach = self.max_norm * share if isinstance(context.aggregator, Mean) else None
        return self.private(updates_CD, updates_CD.shape[1:], context, reach, context.sample_rate)


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
        return self.private(updates_CD, updates_CD.shape, context, self.max_norm)
