"""The attacker's view of a round: it holds what the threat model grants, and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Never

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregate, Aggregator, Past
from fl_lightning.attacks._objectives import Objective, TargetSamples
from fl_lightning.attacks._services import Services, Token, services_of, token_of
from fl_lightning.clients import Client
from fl_lightning.data import Samples
from fl_lightning.defenses import Defense
from fl_lightning.models import FlatNetwork
from fl_lightning.participation import Cohort

if TYPE_CHECKING:  # Lightning takes seconds, and a configuration is checked without it
    from lightning.pytorch import Callback

Knowledge = Literal["none", "partial", "full"]
LEVELS: tuple[Knowledge, ...] = ("none", "partial", "full")

LEAST: Mapping[str, Knowledge] = MappingProxyType(
    {
        "knowledge": "none",
        "visible": "none",
        "round": "none",
        "n_clients": "none",
        "n_malicious": "none",
        "global_D": "none",
        "previous_D": "none",
        "server_lr": "none",
        "classes": "none",
        "objective": "none",
        "client": "none",
        "flat": "none",
        "own_clients": "none",
        "own_ranks": "none",
        "own_updates": "none",
        "own_weights": "none",
        "own_samples": "none",
        "known_updates": "none",
        "dirty_samples": "none",
        "dirty": "none",
        "draw": "none",
        "limits": "none",
        "targets": "none",
        "generator": "none",
        "run_generator": "none",
        "train": "none",
        "train_one": "none",
        "aggregator": "partial",
        "visible_updates": "partial",
        "replay": "partial",
        "past": "partial",
        "cohort": "full",
        "benign_clients": "full",
        "benign_updates": "full",
        "benign_weights": "full",
        "benign_samples": "full",
        "defenses": "full",
    }
)
"""Everything public of a view, and the least knowledge that is shown it."""


class KnowledgeError(PermissionError):
    """An attack asked for more than its threat model grants."""


def grants(knowledge: Knowledge, name: str) -> bool:
    """Whether a level of knowledge is shown what has this name."""
    return LEVELS.index(knowledge) >= LEVELS.index(LEAST[name])


class View:
    """What the malicious clients of a round know, and what they can do.

    Public for every attacker are the round, the number of clients C and of malicious clients M, the server's learning
    rate, the broadcast model and the one before, and the malicious clients' own data and honest updates. Partial knowledge
    adds the aggregator and as many benign updates as the configuration makes visible; full knowledge adds all benign
    updates and data, and the defenses. `LEAST` says which level is shown what.

    A view holds what its level is shown, as copies that are made anew whenever they are asked for, and a token for
    everything that only the federation can do, such as training. Asking for more raises `KnowledgeError`.

    Attributes:
        knowledge: what was granted.
        visible: number of benign updates that partial knowledge makes visible.
        round: the communication round, from 0.
        n_clients: participants of this round, C.
        n_malicious: malicious participants of this round, M.
        global_D: `[D]` the broadcast model that everybody starts from.
        previous_D: `[D]` the model broadcast before it (the same in round 0).
        server_lr: the server's learning rate.
        classes: number of classes K.
        objective: what the attack is after.
        client: the local training settings of the federation; their callbacks with full knowledge only.
        flat: scores, losses and gradients of the architecture at any parameter vector.
        own_clients: `[M]` ids of the malicious participants, ascending.
        own_ranks: `[M]` the place of each among all malicious clients of the population, the same in every round.
        own_weights: `[M]` sample counts of the malicious clients.
        aggregator: the server's rule (partial).
        cohort: who takes part, and who of them is malicious (full).
        benign_clients: `[C - M]` ids of the benign participants (full).
        benign_weights: `[C - M]` their sample counts (full).
        defenses: the server's defenses (full).
    """

    __slots__ = ("_held", "_own_R", "_rows_RD", "_token")

    knowledge: Knowledge
    visible: int
    round: int
    n_clients: int
    n_malicious: int
    global_D: Tensor
    previous_D: Tensor
    server_lr: float
    classes: int
    objective: Objective
    client: Client
    flat: FlatNetwork
    own_clients: Tensor
    own_ranks: Tensor
    own_weights: Tensor
    aggregator: Aggregator
    cohort: Cohort
    benign_clients: Tensor
    benign_weights: Tensor
    defenses: Mapping[str, Defense]
    _held: Mapping[str, Any]
    _rows_RD: Tensor
    _own_R: Tensor
    _token: Token

    def __init__(
        self,
        *,
        knowledge: Knowledge,
        visible: int,
        cohort: Cohort,
        honest_CD: Tensor,
        weights_C: Tensor,
        previous_D: Tensor,
        server_lr: float,
        client: Client,
        flat: FlatNetwork,
        aggregator: Aggregator,
        defenses: Mapping[str, Defense],
        services: Services,
    ):
        malicious_C = cohort.malicious.to(honest_CD.device)
        everything: dict[str, Callable[[], Any]] = {
            "knowledge": lambda: knowledge,
            "visible": lambda: visible,
            "round": lambda: services.round,
            "n_clients": lambda: len(malicious_C),
            "n_malicious": lambda: int(malicious_C.sum()),
            "global_D": lambda: services.global_D.clone(),
            "previous_D": lambda: previous_D.clone(),
            "server_lr": lambda: server_lr,
            "classes": lambda: services.classes,
            "objective": lambda: deepcopy(services.objective),
            "client": lambda: deepcopy(client if grants(knowledge, "defenses") else replace(client, callbacks={})),
            "flat": lambda: deepcopy(flat),
            "own_clients": lambda: cohort.clients[cohort.malicious],
            "own_ranks": lambda: torch.tensor(services.ranks),
            "own_weights": lambda: weights_C[malicious_C],
            "aggregator": lambda: deepcopy(aggregator),
            "cohort": lambda: _copied(cohort),
            "benign_clients": lambda: cohort.clients[~cohort.malicious],
            "benign_weights": lambda: weights_C[~malicious_C],
            "defenses": lambda: MappingProxyType(deepcopy(dict(defenses))),
        }
        held = {name: value() for name, value in everything.items() if grants(knowledge, name)}
        known_C = _known(knowledge, visible, malicious_C, services)
        # With everything known no copy is needed: the server goes on with another one.
        rows_RD = honest_CD if bool(known_C.all()) else honest_CD[known_C]
        object.__setattr__(self, "_held", MappingProxyType(held))
        object.__setattr__(self, "_rows_RD", rows_RD)
        object.__setattr__(self, "_own_R", malicious_C[known_C])
        object.__setattr__(self, "_token", token_of(services))

    def __getattr__(self, name: str) -> Any:
        if name not in LEAST:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name not in self._held:
            self._require(name)
        return _copied(self._held[name])

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"a view cannot be changed: {name}")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._held]

    def __repr__(self) -> str:
        return f"View(knowledge={self.knowledge!r}, round={self.round}, n_clients={self.n_clients})"

    def _require(self, name: str) -> None:
        if not grants(self.knowledge, name):
            raise KnowledgeError(f"{name} needs {LEAST[name]} knowledge, the attack was granted {self.knowledge!r}")

    # For every attacker

    @property
    def own_updates(self) -> Tensor:
        """`[M, D]` what the malicious clients would have sent honestly."""
        return self._rows_RD[self._own_R]

    @property
    def own_samples(self) -> list[Samples]:
        """Clean training samples of each malicious client."""
        return services_of(self._token).samples(malicious=True)

    @property
    def dirty_samples(self) -> list[Samples]:
        """For each malicious client, its samples made dirty by the objective (all get the same `target_samples`)."""
        return services_of(self._token).own_dirty()

    def dirty(self, samples: Samples) -> Samples:
        """Samples that the attackers know, made dirty by the objective."""
        return services_of(self._token).dirty(samples)

    def draw(self, size: int | None, generator: torch.Generator) -> Samples:
        """Clean samples drawn without replacement from all those that the attackers know.

        Args:
            size: how many; None, or more than there are: all of them.
            generator: CPU generator.
        """
        return services_of(self._token).draw(size, generator)

    @property
    def limits(self) -> tuple[Tensor, Tensor] | None:
        """`[ch, 1, 1]` each, what pixels of 0 and of 1 are in the data; None unless the objective draws on images."""
        return services_of(self._token).limits()

    @property
    def targets(self) -> Samples:
        """The inputs of a `target_samples` objective with their wished labels.

        Raises:
            KnowledgeError: for other objectives, whose success samples no attacker may see.
        """
        if not isinstance(self.objective, TargetSamples):
            raise KnowledgeError(f"the success samples of {self.objective.name!r} are held out from every attacker")
        return services_of(self._token).targets()

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Fresh random numbers of the attack for a purpose, keyed by seed and round."""
        return services_of(self._token).generator(purpose, *keys)

    def run_generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Fresh random numbers of the attack for a purpose, keyed by the seed alone: the same in every round."""
        return services_of(self._token).run_generator(purpose, *keys)

    def train(
        self,
        samples: Sequence[Samples],
        client: Client | None = None,
        callbacks: "Callable[[], list[Callback]]" = list,
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
        clients: list[int] = self.own_clients.tolist()
        return services_of(self._token).train(clients, samples, client or self.client, callbacks, start_D)

    def train_one(self, samples: Samples, client: Client | None = None, start_D: Tensor | None = None) -> Tensor:
        """Train one model for all malicious clients, as the first of them; see `train`.

        Returns:
            `[D]` trained model minus the start.
        """
        first: list[int] = self.own_clients[:1].tolist()
        return services_of(self._token).train(first, [samples], client or self.client, list, start_D)[0]

    # With partial knowledge

    @property
    def visible_updates(self) -> Tensor:
        """`[V, D]` benign updates that the threat model makes visible: all of them with full knowledge."""
        self._require("visible_updates")
        return self._rows_RD[~self._own_R]

    @property
    def known_updates(self) -> Tensor:
        """`[H, D]` every honest update that the attackers know: their own first, then the visible benign ones."""
        return torch.cat([self.own_updates, self._rows_RD[~self._own_R]])

    @property
    def replay(self) -> Callable[[Tensor], Aggregate]:
        """`view.replay(updates_MD)`: what the server would aggregate if the malicious clients sent these; nothing real moves.

        With full knowledge the server is as it is: all rows in the order of the round, their weights, the defenses and what they
        remember, then the rule. Random numbers are not the server's, but the same in every replay of a round. With partial
        knowledge it is the rule alone, with equal weights, over the first J = max(1, floor(M H / C)) of the updates and after
        them the H known ones, told to tolerate J rows, or the most that it accepts.

        It takes `[M, D]` and returns the aggregate of all these rows: an update of 0 and no row kept where the server would skip
        the round. Updates of another shape are a ValueError.
        """
        self._require("replay")
        return self._replay

    def _replay(self, updates_MD: Tensor) -> Aggregate:
        own_MD = self.own_updates
        if updates_MD.shape != own_MD.shape:
            raise ValueError(f"a replay needs updates of shape {list(own_MD.shape)}, got {list(updates_MD.shape)}")
        services = services_of(self._token)
        if self.knowledge == "full":
            rows_RD = self._rows_RD.clone()
            rows_RD[self._own_R] = updates_MD.to(rows_RD)
            return services.replay(rows_RD, None, None)
        known_HD = self.known_updates
        crafted = max(1, self.n_malicious * len(known_HD) // self.n_clients)
        rows_RD = torch.cat([updates_MD[:crafted].to(known_HD), known_HD])
        return services.replay(
            rows_RD, rows_RD.new_ones(len(rows_RD)), tolerating(self.aggregator, crafted, len(rows_RD))
        )

    @property
    def past(self) -> Past:
        """What the rule is called with beside the rows; the server's own update with full knowledge only.

        Random numbers are the attack's, the same as in a replay.
        """
        self._require("past")
        token, known = self._token, services_of(self._token).past
        reference_D = None if known.reference_D is None else known.reference_D.clone()
        trusted = (lambda: services_of(token).trusted()) if self.knowledge == "full" and known.trusted else None
        return Past(reference_D, lambda purpose: services_of(token).coins(purpose), known.layout, trusted)

    # With full knowledge

    @property
    def benign_updates(self) -> Tensor:
        """`[C - M, D]` the benign clients' updates."""
        self._require("benign_updates")
        return self._rows_RD[~self._own_R]

    @property
    def benign_samples(self) -> list[Samples]:
        """Training samples of each benign client."""
        self._require("benign_samples")
        return services_of(self._token).samples(malicious=False)


def tolerating(rule: Aggregator, malicious: int, rows: int) -> Aggregator:
    """The rule told to tolerate so many of its rows, or the most that it accepts; as it is where it needs no such number."""
    if rule.n_byzantine is None:
        return rule
    for count in range(malicious, -1, -1):
        told = rule.assuming(count)
        try:
            told.check(rows)
        except ValueError:
            continue
        return told
    return rule.assuming(0)


def _known(knowledge: Knowledge, visible: int, malicious_C: Tensor, services: Services) -> Tensor:
    """`[C]` bool, whose updates a level of knowledge is shown; partial knowledge draws `visible` benign ones each round."""
    if knowledge == "full":
        return torch.ones_like(malicious_C)
    known_C = malicious_C.clone()
    if knowledge == "partial":
        benign = torch.nonzero(~malicious_C).flatten()
        order = torch.randperm(len(benign), generator=services.generator("visible"))[:visible]
        known_C[benign[order.to(benign.device)]] = True
    return known_C


def _copied(value: Any) -> Any:
    """Tensors, and cohorts of them, that may be written to; everything else cannot be."""
    if isinstance(value, Tensor):
        return value.clone()
    return Cohort(*map(_copied, value)) if isinstance(value, Cohort) else value
