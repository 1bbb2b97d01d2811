"""The attacker's view of a round: it shows what the threat model allows and refuses everything else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from lightning.pytorch import Callback
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks._objectives import Goal, Objective, TargetSamples
from fl_lightning.clients import Client
from fl_lightning.data import Samples
from fl_lightning.defenses import Defense
from fl_lightning.engines import Bench, Engine, Job
from fl_lightning.models import FlatNetwork
from fl_lightning.participation import Cohort
from fl_lightning.randomness import generator

Knowledge = Literal["none", "partial", "full"]
LEVELS: tuple[Knowledge, ...] = ("none", "partial", "full")

T = TypeVar("T")


class KnowledgeError(PermissionError):
    """An attack asked for more than its threat model grants."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the malicious clients of a round know, and what they can do.

    Public for every attacker are the round, the number of clients C and of malicious clients M, the server's learning
    rate, the broadcast model and the one before, and the malicious clients' own data and honest updates. Partial knowledge
    adds the aggregator and as many benign updates as the configuration makes visible; full knowledge adds all benign
    updates and data, and the defenses.

    Attributes:
        knowledge: what was granted.
        round: the communication round, from 0.
        cohort: who takes part; attackers read `n_clients` and `n_malicious`.
        global_D: `[D]` the broadcast model that everybody starts from.
        previous_D: `[D]` the model broadcast before it (the same in round 0).
        server_lr: the server's learning rate.
        classes: number of classes K.
        objective: what the attack is after.
        flat: scores, losses and gradients of the architecture at any parameter vector.
        client: the local training settings of the federation.
    """

    knowledge: Knowledge
    visible: int
    round: int
    cohort: Cohort
    global_D: Tensor
    previous_D: Tensor
    server_lr: float
    classes: int
    objective: Objective
    client: Client
    _goal: Goal = field(repr=False)
    _honest_CD: Tensor = field(repr=False)
    _weights_C: Tensor = field(repr=False)
    _jobs: Sequence[Job] = field(repr=False)
    _bench: Bench = field(repr=False)
    _engine: Engine = field(repr=False)
    _aggregator: Aggregator = field(repr=False)
    _defenses: Mapping[str, Defense] = field(repr=False)

    def _grant(self, needed: Knowledge, what: str, value: T) -> T:
        if LEVELS.index(self.knowledge) < LEVELS.index(needed):
            raise KnowledgeError(f"{what} needs {needed} knowledge, the attack was granted {self.knowledge!r}")
        return value

    # For every attacker

    @property
    def flat(self) -> FlatNetwork:
        """The architecture and loss as functions of a parameter vector."""
        return self._bench.flat

    @property
    def n_clients(self) -> int:
        """Participants of this round, C."""
        return len(self.cohort.clients)

    @property
    def n_malicious(self) -> int:
        """Malicious participants of this round, M."""
        return int(self.cohort.malicious.sum())

    @property
    def own_updates(self) -> Tensor:
        """`[M, D]` what the malicious clients would have sent honestly."""
        return self._honest_CD[self._rows]

    @property
    def own_weights(self) -> Tensor:
        """`[M]` sample counts of the malicious clients."""
        return self._weights_C[self._rows]

    @property
    def own_samples(self) -> list[Samples]:
        """Clean training samples of each malicious client."""
        return [job.samples[job.rows] for job in self._own_jobs]

    @property
    def dirty_samples(self) -> list[Samples]:
        """For each malicious client, its samples made dirty by the objective (all get the same `target_samples`)."""
        return [self.dirty(own) for own in self.own_samples]

    def dirty(self, samples: Samples) -> Samples:
        """Samples that the attackers know, made dirty by the objective."""
        return self.objective.dirty(samples, self._goal, self.classes)

    def draw(self, size: int | None, generator: torch.Generator) -> Samples:
        """Clean samples drawn without replacement from all those that the attackers know.

        Args:
            size: how many; None, or more than there are: all of them.
            generator: CPU generator.
        """
        jobs = self._jobs if self.knowledge == "full" else self._own_jobs
        ends = torch.tensor([len(job.rows) for job in jobs]).cumsum(0)
        picked = torch.randperm(int(ends[-1]), generator=generator)[:size].sort().values
        parts = []
        for job, end in zip(jobs, ends.tolist(), strict=True):
            rows = picked[(end - len(job.rows) <= picked) & (picked < end)] - (end - len(job.rows))
            parts.append(job.samples[job.rows[rows.to(job.rows.device)]])
        return Samples.cat(parts)

    @property
    def targets(self) -> Samples:
        """The inputs of a `target_samples` objective with their wished labels.

        Raises:
            KnowledgeError: for other objectives, whose success samples no attacker may see.
        """
        if not isinstance(self.objective, TargetSamples) or self._goal.success is None:
            raise KnowledgeError(f"the success samples of {self.objective.name!r} are held out from every attacker")
        return Samples(self._goal.success.x.clone(), self._goal.success.y.clone())

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Fresh random numbers of the attack for a purpose, keyed by seed and round."""
        return generator(self._bench.seed, f"attack {purpose}", self.round, *keys)

    def train(
        self,
        samples: Sequence[Samples],
        client: Client | None = None,
        callbacks: Callable[[], list[Callback]] = list,
        start_D: Tensor | None = None,
    ) -> Tensor:
        """Train the malicious clients on samples of their choice, through the engine of the federation.

        Args:
            samples: one set of samples for each malicious client.
            client: local training settings; None: those of the federation, without its callbacks.
            callbacks: makes the Lightning callbacks of one fit.
            start_D: `[D]` where to start; None: the global model.

        Returns:
            `[M, D]` trained models minus the start.
        """
        clients = [job.client for job in self._own_jobs]
        return self._fit(clients, samples, client or self.client, callbacks, start_D)

    def train_one(self, samples: Samples, client: Client | None = None, start_D: Tensor | None = None) -> Tensor:
        """Train one model for all malicious clients, as the first of them; see `train`.

        Returns:
            `[D]` trained model minus the start.
        """
        return self._fit([self._own_jobs[0].client], [samples], client or self.client, list, start_D)[0]

    def _fit(
        self,
        clients: Sequence[int],
        samples: Sequence[Samples],
        settings: Client,
        callbacks: Callable[[], list[Callback]],
        start_D: Tensor | None,
    ) -> Tensor:
        jobs = [
            Job(client, own, torch.arange(len(own), device=own.y.device))
            for client, own in zip(clients, samples, strict=True)
        ]
        start_D = self.global_D if start_D is None else start_D
        return self._engine.train(self._bench, start_D, jobs, settings, self.round, callbacks)

    # With partial knowledge

    @property
    def aggregator(self) -> Aggregator:
        """The server's rule."""
        return self._grant("partial", "the aggregator", self._aggregator)

    @property
    def visible_updates(self) -> Tensor:
        """`[V, D]` benign updates that the threat model makes visible: all of them with full knowledge."""
        benign = self._grant("partial", "a benign update", self._honest_CD[~self._rows])
        if self.knowledge == "full":
            return benign
        order = torch.randperm(len(benign), generator=self.generator("visible"))[: self.visible]
        return benign[order.sort().values.to(benign.device)]

    @property
    def known_updates(self) -> Tensor:
        """`[H, D]` every honest update that the attackers know: their own first, then the visible benign ones."""
        if self.knowledge == "none":
            return self.own_updates
        return torch.cat([self.own_updates, self.visible_updates])

    # With full knowledge

    @property
    def benign_updates(self) -> Tensor:
        """`[C - M, D]` the benign clients' updates."""
        return self._grant("full", "all benign updates", self._honest_CD[~self._rows])

    @property
    def benign_weights(self) -> Tensor:
        """`[C - M]` sample counts of the benign clients."""
        return self._grant("full", "the benign clients' weights", self._weights_C[~self._rows])

    @property
    def benign_samples(self) -> list[Samples]:
        """Training samples of each benign client."""
        bad = self.cohort.malicious.tolist()
        jobs = [job for job, malicious in zip(self._jobs, bad, strict=True) if not malicious]
        return self._grant("full", "benign data", [job.samples[job.rows] for job in jobs])

    @property
    def defenses(self) -> Mapping[str, Defense]:
        """The server's defenses."""
        return self._grant("full", "the defenses", self._defenses)

    @property
    def _rows(self) -> Tensor:
        return self.cohort.malicious.to(self._honest_CD.device)

    @property
    def _own_jobs(self) -> list[Job]:
        return [job for job, bad in zip(self._jobs, self.cohort.malicious.tolist(), strict=True) if bad]
