"""What the federation does for the attackers of a round on request, and the token that a view holds of it."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregate, Aggregator, Past
from fl_lightning.attacks._objectives import Goal, Objective
from fl_lightning.clients import Client, merging_lone
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Engine, Job, LocalRound
from fl_lightning.randomness import generator

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback


@dataclass(frozen=True, kw_only=True)
class Services:
    """Training, random numbers and data for the attackers of a round; it reaches no data that they must not know.

    Attributes:
        bench: architecture, Trainer and seed.
        engine: trains the clients of the federation.
        round: the communication round.
        global_D: `[D]` the broadcast model.
        jobs: what the clients train on whose data the attackers know, in the order of the round.
        malicious: which of these clients are malicious.
        ranks: of each malicious one, its place among all malicious clients of the population.
        objective: what the attack is after.
        goal: the objective made concrete.
        classes: number of classes K.
        server: what the server would make of updates, weights, a rule (None: its own, with its defenses) and coins, on copies.
        past: what the rule may know beside the rows of the round.
        weights_C: `[C]` the sample counts that clients tell the server.
        rounds: how many are planned.
    """

    bench: Bench
    engine: Engine
    round: int
    global_D: Tensor
    jobs: Sequence[Job]
    malicious: Sequence[bool]
    ranks: Sequence[int]
    objective: Objective
    goal: Goal
    classes: int
    server: Callable[[Tensor, Tensor, Aggregator | None, Callable[[str], torch.Generator]], Aggregate]
    past: Past
    weights_C: Tensor
    rounds: int | None = None

    def samples(self, *, malicious: bool) -> list[Samples]:
        """Copies of the training samples of each malicious, or each known benign client."""
        return [job.samples[job.rows] for job, bad in zip(self.jobs, self.malicious, strict=True) if bad == malicious]

    def draw(self, size: int | None, generator: torch.Generator) -> Samples:
        """Known samples drawn without replacement; see `View.draw`."""
        ends = torch.tensor([len(job.rows) for job in self.jobs]).cumsum(0)
        picked = torch.randperm(int(ends[-1]), generator=generator)[:size].sort().values
        parts = []
        for job, end in zip(self.jobs, ends.tolist(), strict=True):
            rows = picked[(end - len(job.rows) <= picked) & (picked < end)] - (end - len(job.rows))
            parts.append(job.samples[job.rows[rows.to(job.rows.device)]])
        return Samples.cat(parts)

    def dirty(self, samples: Samples, rank: int | None = None) -> Samples:
        """Samples made dirty by the objective, for the attacker of a rank where each has a part of the trigger."""
        goal = self.goal if rank is None else self.goal.seen_by(rank)
        hidden = goal._replace(clean=samples, success=None, truth=None)
        return self.objective.dirty(samples, hidden, self.classes)

    def own_dirty(self) -> list[Samples]:
        """The samples of each malicious client, made dirty by the objective."""
        return [self.dirty(own, rank) for own, rank in zip(self.samples(malicious=True), self.ranks, strict=True)]

    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Copies of what pixels of 0 and 1 are in the data, where the objective draws on images."""
        found = self.goal.stamps.limits if self.goal.stamps else None
        return found and (found[0].clone(), found[1].clone())

    def targets(self) -> Samples:
        """A copy of the samples that all attackers share."""
        return self.goal.copy_of_shared()

    def train(
        self,
        clients: Sequence[int],
        samples: Sequence[Samples],
        settings: Client,
        callbacks: "Callable[[], list[Callback]]",
        start_D: Tensor | None,
    ) -> Tensor:
        """Updates of malicious clients trained on samples of their choice; see `View.train`."""
        jobs = [
            Job(client, part, torch.arange(len(part), device=part.y.device))
            for client, part in zip(clients, samples, strict=True)
        ]
        start_D = self.global_D if start_D is None else start_D
        settings = merging_lone(settings, self.bench.flat.network, samples)
        return self.engine.train(self.bench, LocalRound(start_D, jobs, settings, self.round, callbacks, self.rounds))

    def replay(self, updates_CD: Tensor, weights_C: Tensor | None, rule: Aggregator | None) -> Aggregate:
        """What the server would make of updates, with coins of the attack's own; see `View.replay`."""
        weights_C = self.weights_C if weights_C is None else weights_C
        return self.server(updates_CD, weights_C, rule, self.coins)

    def coins(self, purpose: str) -> torch.Generator:
        """The attack's random numbers in place of the server's, which nobody can foresee."""
        return self.generator(f"replay {purpose}")

    def trusted(self) -> Tensor:
        """`[D]` the server's own update from its samples.

        Raises:
            ValueError: it has none.
        """
        if self.past.trusted is None:
            raise ValueError("the server has no samples of its own")
        return self.past.trusted()

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Random numbers keyed by purpose and round."""
        return generator(self.bench.seed, f"attack {purpose}", self.round, *keys)

    def run_generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Random numbers keyed by purpose, the same in every round."""
        return generator(self.bench.seed, f"attack of the run {purpose}", *keys)


class Token:
    """Stands for services; it holds nothing, and only `services_of` knows what it stands for."""

    __slots__ = ("__weakref__",)


# Behind a context variable, so that no walk over attributes, those of modules included, leads from a view to services.
_SERVICES: ContextVar["WeakKeyDictionary[Token, Services]"] = ContextVar("services", default=WeakKeyDictionary())  # noqa: B039


def token_of(services: Services) -> Token:
    """A token for services, which live as long as it does."""
    token = Token()
    _SERVICES.get()[token] = services
    return token


def services_of(token: Token) -> Services:
    """What a token stands for."""
    return _SERVICES.get()[token]
