"""Who takes part in a round, who is malicious, and in which rounds the attack happens."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import Component, Registry, Slot

__all__ = [
    "Always",
    "Cohort",
    "Fraction",
    "FromRound",
    "Full",
    "Group",
    "KOfN",
    "Never",
    "Once",
    "Participation",
    "Random",
    "Schedule",
    "Spaced",
    "Staggered",
    "client_groups",
]


def client_groups(population: int, groups: int, generator: torch.Generator) -> list[Tensor]:
    """The clients dealt to disjoint groups of nearly equal size.

    Args:
        population: number of clients N.
        groups: number of groups, 1 to N.
        generator: of the order, on the CPU.

    Raises:
        ValueError: a group would be empty.
    """
    if not 1 <= groups <= population:
        raise ValueError(f"groups must be from 1 to the number of clients, {population}, got {groups}")
    order = torch.randperm(population, generator=generator)
    return [order[group::groups].sort().values for group in range(groups)]


class Schedule(Component, ABC):
    """Decides in which rounds the malicious clients attack; in all others they train honestly."""

    @abstractmethod
    def adversarial(self, round: int, seed: int) -> bool:
        """Whether `round` (from 0) is an adversarial round."""

    def attackers(self, round: int, count: int) -> Tensor:
        """`[count]` bool, which of all malicious clients, in the order of their ids, attack in an adversarial round.

        The others are honest in that round.
        """
        return torch.ones(count, dtype=torch.bool)


class Always(Schedule):
    """Attack in every round."""

    name: ClassVar[str] = "always"

    def adversarial(self, round: int, seed: int) -> bool:
        """True."""
        return True


class Never(Schedule):
    """Attack in no round: the malicious clients are honest for ever, a control."""

    name: ClassVar[str] = "never"

    def adversarial(self, round: int, seed: int) -> bool:
        """False."""
        return False


class FromRound(Schedule):
    """Attack in every round from `round` on (the papers' multiple shots, `MA_t`)."""

    name: ClassVar[str] = "from_round"
    round: int = Field(ge=0)

    def adversarial(self, round: int, seed: int) -> bool:
        """True from `self.round` on."""
        return round >= self.round


class Once(Schedule):
    """Attack in one round only (the papers' single shot, `SA_t`)."""

    name: ClassVar[str] = "once"
    round: int = Field(ge=0)

    def adversarial(self, round: int, seed: int) -> bool:
        """True in `self.round`."""
        return round == self.round


class Spaced(Schedule):
    """Attack in the round `first` and in every `every`-th round after it, `times` times."""

    name: ClassVar[str] = "spaced"
    first: int = Field(ge=0)
    every: int = Field(ge=1)
    times: int = Field(ge=1)

    def adversarial(self, round: int, seed: int) -> bool:
        """True in `first`, `first + every`, ..."""
        count, off = divmod(round - self.first, self.every)
        return off == 0 and 0 <= count < self.times


class Staggered(Schedule):
    """The malicious clients attack one after the other: number k, by id, in round `first + k * every` only.

    References:
        Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020 (single shot).
    """

    name: ClassVar[str] = "staggered"
    cites: ClassVar[tuple[str, ...]] = ("xie2020dba",)
    first: int = Field(ge=0)
    every: int = Field(default=1, ge=1)

    def adversarial(self, round: int, seed: int) -> bool:
        """True in `first`, `first + every`, ...; once the last malicious client has attacked, nobody is left to."""
        return round >= self.first and (round - self.first) % self.every == 0

    def attackers(self, round: int, count: int) -> Tensor:
        """The one whose turn it is."""
        return torch.arange(count) == (round - self.first) // self.every


class Random(Schedule):
    """Attack in each round with a probability, independently."""

    name: ClassVar[str] = "random"
    probability: float = Field(ge=0, le=1)

    def adversarial(self, round: int, seed: int) -> bool:
        """A coin keyed by seed and round."""
        return float(torch.rand((), generator=generator(seed, "schedule", round))) < self.probability


class Cohort(NamedTuple):
    """The participants of a round.

    Attributes:
        clients: `[C]` client ids, ascending.
        malicious: `[C]` bool, which of them are malicious.
        adversarial: whether the malicious ones attack in this round.
    """

    clients: Tensor
    malicious: Tensor
    adversarial: bool


class Participation(Component, ABC):
    """Draws the participants of each round.

    Attributes:
        malicious: number of malicious clients M in the population; their ids are drawn by seed.
        schedule: the adversarial rounds.
        forced: True: all malicious clients take part in adversarial rounds and in no other. False: they are sampled
            like everybody else.
    """

    malicious: int = Field(default=0, ge=0)
    schedule: Annotated[Schedule, Slot("schedule")] = Field(default_factory=Always)
    forced: bool = False

    @abstractmethod
    def per_round(self, n_clients: int) -> int:
        """Number of participants a round, C, in a population of `n_clients`."""

    def check(self, n_clients: int) -> None:
        """Refuse impossible numbers.

        Raises:
            ConfigError: more malicious clients or participants than there are clients.
        """
        if self.malicious > n_clients:
            raise ConfigError(f"at most {n_clients} clients can be malicious, got {self.malicious}", "malicious")
        size = self.per_round(n_clients)
        if size > n_clients:
            raise ConfigError(f"{size} participants a round need at least as many clients, got {n_clients}")
        if self.forced and self.malicious > size:
            raise ConfigError(f"{self.malicious} forced malicious clients do not fit into a round of {size}", "forced")
        if self.forced and size > n_clients - self.malicious:
            benign = n_clients - self.malicious
            raise ConfigError(f"honest rounds need {size} benign clients when forced, there are {benign}", "forced")

    def eligible(self, n_clients: int, seed: int) -> Tensor:
        """`[N]` bool, who may take part at all; whoever may not, malicious or benign, never does."""
        return torch.ones(n_clients, dtype=torch.bool)

    def malicious_clients(self, n_clients: int, seed: int) -> Tensor:
        """`[M]` ids of the malicious clients, ascending."""
        order = torch.randperm(n_clients, generator=generator(seed, "malicious"))
        return order[: self.malicious].sort().values

    def sample(self, round: int, n_clients: int, seed: int) -> Cohort:
        """The participants of `round`; a function of its arguments alone."""
        bad = torch.zeros(n_clients, dtype=torch.bool)
        ids = self.malicious_clients(n_clients, seed)
        bad[ids] = True
        adversarial = self.schedule.adversarial(round, seed)
        attacking = bad.clone()
        if adversarial and len(ids):
            attacking[ids] = self.schedule.attackers(round, len(ids))
            adversarial = bool(attacking.any())
        size = self.per_round(n_clients)
        order = torch.randperm(n_clients, generator=generator(seed, "participation", round))
        order = order[self.eligible(n_clients, seed)[order]]
        if self.forced:
            forced = order[attacking[order]] if adversarial else order[:0]
            order = torch.cat([forced, order[~bad[order]]])
        clients = order[:size].sort().values
        return Cohort(clients, attacking[clients], adversarial)


class Full(Participation):
    """Every client takes part in every round."""

    name: ClassVar[str] = "full"

    @model_validator(mode="after")
    def _not_forced(self) -> "Full":
        if self.forced:
            raise ValueError("'forced' has no meaning when everybody takes part")
        return self

    def per_round(self, n_clients: int) -> int:
        """All clients."""
        return n_clients


class Fraction(Participation):
    """A random fraction of the clients takes part in each round, at least one."""

    name: ClassVar[str] = "fraction"
    fraction: float = Field(gt=0, le=1)

    def per_round(self, n_clients: int) -> int:
        """The rounded fraction of all clients."""
        return max(1, round(self.fraction * n_clients))


class KOfN(Participation):
    """Exactly `k` random clients take part in each round."""

    name: ClassVar[str] = "k_of_n"
    k: int = Field(ge=1)

    def per_round(self, n_clients: int) -> int:
        """`k`."""
        return self.k


class Group(Participation):
    """One of several disjoint groups of clients takes part, all the others never: a member of FLCert's ensemble.

    The groups are dealt by seed and of nearly equal size; malicious clients keep their ids, whatever group they are in.

    Attributes:
        groups: number of groups, at most one for each client.
        group: which of them, from 0.
        fraction: share of the group that takes part in each round, at least one client.

    References:
        Cao, Zhang, Jia, Gong, "FLCert: Provably Secure Federated Learning Against Poisoning Attacks", IEEE Transactions on
        Information Forensics and Security 2022 (FLCert-D).
    """

    name: ClassVar[str] = "group"
    cites: ClassVar[tuple[str, ...]] = ("cao2022flcert",)
    groups: int = Field(ge=1)
    group: int = Field(ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> "Group":
        if self.forced:
            raise ValueError("'forced' has no meaning where the attackers of other groups cannot take part")
        if self.group >= self.groups:
            raise ValueError(f"group must be less than groups, {self.groups}, got {self.group}")
        return self

    def check(self, n_clients: int) -> None:
        """Also refuse empty groups."""
        if self.groups > n_clients:
            raise ConfigError(f"must be at most the number of clients, {n_clients}, got {self.groups}", "groups")
        super().check(n_clients)

    def eligible(self, n_clients: int, seed: int) -> Tensor:
        """The members of the group."""
        members = client_groups(n_clients, self.groups, generator(seed, "groups"))[self.group]
        return torch.zeros(n_clients, dtype=torch.bool).index_fill(0, members, True)

    def per_round(self, n_clients: int) -> int:
        """The rounded fraction of the group."""
        return max(1, round(self.fraction * len(range(self.group, n_clients, self.groups))))


REGISTRIES = {
    "participation": Registry("participation", Participation, [Full, Fraction, KOfN, Group]),
    "schedule": Registry("schedule", Schedule, [Always, Never, FromRound, Once, Spaced, Staggered, Random]),
}
