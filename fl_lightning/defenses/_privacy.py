"""Central and local differential privacy as defenses: clip, then noise, once at the server or at every client.

References:
    Naseri, Hayes, De Cristofaro, "Local and Central Differential Privacy for Robustness and Privacy in Federated Learning",
    NDSS 2022.
    Sun et al., "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated Learning from a Client
    Perspective", NeurIPS 2021, section 7.1 (clipping norm 5 for Fashion-MNIST, Laplace noise).
"""

from abc import ABC
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Mean
from fl_lightning.defenses._base import (
    Defense,
    ServerContext,
    State,
    Verdict,
    applied,
    trained_columns,
    trained_of,
)
from fl_lightning.defenses._noise import Distribution, bounding_norms, clip_factors, epsilon, epsilon_rdp, noise, noised
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


class Privacy(Defense, ABC):
    """Clipping and noise.

    Attributes:
        max_norm: clipping norm of an update's parameters.
        std: standard deviation of the noise on every parameter, before `rate`.
        distribution: of the noise; a Laplace scale is std / sqrt(2).
        rate: factor on the noise. FL-WBC multiplies its noise by the clients' learning rate: give that rate here to compare on
            the same footing.
        delta: of the (epsilon, delta) that is reported for Gaussian noise.
        accountant: `exact`: composition in closed form, neighbours replace one client, who takes part in every round. `rdp`,
            for Gaussian noise: Opacus' Rényi accountant, neighbours add or remove one client, who takes part in each round with
            the probability that the participation gives (CDP; LDP is not amplified, as the server sees who takes part).
    """

    max_norm: Annotated[float, Tunable(0.05, 10, log=True)] = Field(default=5.0, gt=0)
    std: Annotated[float, Tunable(0.001, 1, log=True)] = Field(default=0.1, ge=0)
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

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on every parameter."""
        return self.std * self.rate

    def factors(self, updates_CD: Tensor, context: ServerContext) -> Tensor:
        """`[C]` what clips the rows' parameters."""
        return clip_factors(bounding_norms(updates_CD, context), self.max_norm).to(updates_CD)

    def spent(
        self, context: ServerContext, dimension: int, reach: float | None, sample_rate: float = 1.0
    ) -> dict[str, float]:
        """The epsilon of all rounds so far, or nothing where it is not known.

        Args:
            context: the round.
            dimension: number of noisy parameters.
            reach: how far one client's presence can move what is released; None: not known.
            sample_rate: its probability of taking part in a round.
        """
        if reach is None or not self.deviation:
            return {}
        releases = context.round + 1
        if self.accountant == "rdp":
            return {"epsilon": epsilon_rdp(reach, self.deviation, releases, self.delta, sample_rate)}
        return {"epsilon": epsilon(2 * reach, self.deviation, releases, dimension, self.distribution, self.delta)}


class Cdp(Privacy):
    """Central differential privacy: the server clips the updates and adds noise once, to the parameters of the new model.

    The noise is neither scaled by the server's learning rate nor seen by its optimizer. An epsilon is reported for the mean and
    plain server steps only, whose sensitivity is known: max_norm times the learning rate times a client's share of the weights,
    twice that when one client is replaced by another. It covers parameters, not running statistics.
    """

    name: ClassVar[str] = "cdp"
    cites: ClassVar[tuple[str, ...]] = ("naseri2022local",)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay."""
        share = float(context.weights_C.max() / context.weights_C.sum())
        known = isinstance(context.aggregator, Mean) and context.server_lr is not None
        reach = self.max_norm * share * (context.server_lr or 0.0) if known else None
        dimension = trained_of(updates_CD, context).shape[1]
        metrics = self.spent(context, dimension, reach, context.sample_rate)
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Verdict(everybody, context.weights_C, None, None, {}, metrics, self.factors(updates_CD, context))

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The noise."""
        random = context.generator(self.name)
        return noised(global_D, self.deviation, self.distribution, random, context.layout), state


class Ldp(Privacy):
    """Local differential privacy: every benign client clips its update and adds its own noise before anybody sees it.

    Its epsilon covers parameters, not running statistics.

    Attributes:
        malicious_too: whether the malicious clients do so as well; attackers have no reason to.
    """

    name: ClassVar[str] = "ldp"
    cites: ClassVar[tuple[str, ...]] = ("naseri2022local", "sun2021flwbc")
    at_clients: ClassVar[bool] = True

    malicious_too: bool = False

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; a client's clipped update may change by 2 max_norm."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        scaled = Verdict(everybody, context.weights_C, None, scale_C=self.factors(updates_CD, context))
        noisy_CD = applied(scaled, updates_CD, context.layout)
        trained = trained_columns(updates_CD, context)
        if self.deviation:
            drawn = noise(noisy_CD[:, trained].shape, self.deviation, self.distribution, context.generator(self.name))
            noisy_CD[:, trained] += drawn.to(noisy_CD)
        metrics = self.spent(context, noisy_CD[:, trained].shape[1], self.max_norm)
        return Verdict(everybody, context.weights_C, noisy_CD, None, {}, metrics)
