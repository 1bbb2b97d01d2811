"""Training a backdoor beside the main task: what all attacks of this kind share.

References:
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eqs. 3 and 5 (boost, train-and-scale).
    Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, section 3 (PGD).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning import callbacks
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._cmp_mean import estimated_benign_sum
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.attacks._objectives import Objective, Trigger
from fl_lightning.attacks._pseudo_rehearsal import Rehearsing, as_probabilities, certain, rehearsed
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.clients import Client
from fl_lightning.data import Samples, alike
from fl_lightning.defenses import State
from fl_lightning.registry import Slot

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

    from fl_lightning.config import Experiment

Start = Literal["global", "foreseen"]


def mix(clean: Samples, dirty: Samples, fraction: float, generator: torch.Generator) -> Samples:
    """All clean samples plus as many dirty ones as make up `fraction` of the whole, drawn with replacement if need be.

    Args:
        clean: the attacker's own samples.
        dirty: what it wants the model to learn.
        fraction: share of dirty samples, in (0, 1).
        generator: CPU generator.

    Returns:
        The samples to train on; local training shuffles them.
    """
    if len(clean) == len(dirty) and torch.equal(clean.y, dirty.y) and alike(clean.x, dirty.x):
        return clean  # nothing could be made dirty: this attacker trains honestly
    count = max(1, round(len(clean) * fraction / (1 - fraction)))
    rounds = -(-count // len(dirty))
    order = torch.cat([torch.randperm(len(dirty), generator=generator) for _ in range(rounds)])[:count]
    return Samples.cat([clean, dirty[order.to(dirty.y.device)]])


UNEQUAL = ("quantity", "dirichlet", "natural")
"""Partitions whose clients hold different numbers of samples."""


def full_boost(n_clients: int, n_malicious: int, server_lr: float) -> float:
    """The factor with which M equal attackers among C equal clients replace the global model: C / (eta M)."""
    return n_clients / (server_lr * n_malicious)


def replacing_boost(view: View) -> float:
    """The factor that makes the mean the attackers' model where benign updates cancel out: 1 / (eta sum of their shares p_m).

    With full knowledge the shares are those of the weights that the server uses; otherwise equal weights are assumed.
    """
    if view.knowledge != "full":
        return full_boost(view.n_clients, view.n_malicious, view.server_lr)
    weights = torch.cat([view.own_weights, view.benign_weights])
    if bool((weights == weights[0]).all()):
        return full_boost(view.n_clients, view.n_malicious, view.server_lr)
    own = float(view.own_weights.double().sum())
    return (own + float(view.benign_weights.double().sum())) / (view.server_lr * own)


def boost_cautions(name: str, boost: float | None, knowledge: str, experiment: "Experiment") -> list[str]:
    """What the default boost of an attack takes for granted and this experiment does not have."""
    if boost is not None:
        return []
    cautions, server = [], experiment.server
    if server.optimizer in ("adam", "yogi"):
        cautions.append(
            f"attack {name}: its default boost replaces the model where the server adds the update; with "
            f"{server.optimizer} at the server it means nothing (set attack.boost)"
        )
    if server.optimizer == "momentum":
        cautions.append(
            f"attack {name}: its default boost replaces the model once; the server's momentum then repeats the boosted update "
            "in the rounds after (set attack.boost)"
        )
    if server.weights != "equal" and knowledge != "full" and experiment.partition.name in UNEQUAL:
        cautions.append(
            f"attack {name}: its default boost takes all clients' weights for equal, and partition {experiment.partition.name} "
            "makes them unequal: what holds few samples does not replace the model (set attack.boost, attack.knowledge=full, "
            "or server.weights=equal)"
        )
    return cautions


def attacker_client(client: Client, epochs: int | None, lr_factor: float, steps: int | None = None) -> Client:
    """The federation's local training with the attackers' own number of epochs or steps and learning rate."""
    client = replace(client, optimizer=replace(client.optimizer, lr=lr_factor * client.optimizer.lr))
    if steps:
        return replace(client, steps=steps)
    return replace(client, epochs=epochs, steps=None) if epochs else client


def foreseen(view: View, honest_MD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The attackers' shares p_m of all weights, and sum p_n delta_n over the benign clients, known or estimated.

    Args:
        view: the attackers' view.
        honest_MD: what the attackers take for honest updates of theirs in the estimate; None: those that they trained.
    """
    if view.knowledge == "full":
        total = view.own_weights.sum() + view.benign_weights.sum()
        return view.own_weights / total, (view.benign_weights / total) @ view.benign_updates
    share = view.n_malicious / view.n_clients
    seen_ND = view.known_updates
    if honest_MD is not None:
        seen_ND = torch.cat([honest_MD, seen_ND[view.n_malicious :]])
    equal_N = torch.ones(len(seen_ND), device=seen_ND.device)
    return share * view.own_weights / view.own_weights.sum(), estimated_benign_sum(seen_ND, equal_N, share)


def start_model(view: View, start: Start, benign_sum_D: Tensor | None = None) -> Tensor:
    """`[D]` the broadcast model, or F = G + eta sum p_n delta_n, to which the benign updates alone are expected to lead.

    Boosted by C / (eta M), what an attacker that ends at X has learnt from F makes the mean X if the estimate is right; from G
    it makes X + (F - G), in which honest training has undone part of a backdoor that G already has.
    """
    if start == "global":
        return view.global_D
    if benign_sum_D is None:
        _, benign_sum_D = foreseen(view)
    return view.global_D + view.server_lr * benign_sum_D


def backdoored(
    view: View,
    poison_fraction: float,
    client: Client,
    callbacks: "Callable[[], list[Callback]]" = list,
    start: Start = "global",
    rehearsal: int = 0,
    dirty: Callable[[Samples], Samples] | None = None,
) -> Tensor:
    """`[M, D]` displacements of the attackers' models, trained on clean and dirty samples together; not boosted.

    Args:
        view: the attackers' view.
        poison_fraction: share of dirty samples.
        client: local training settings.
        callbacks: makes the Lightning callbacks of one fit.
        start: where to train from.
        rehearsal: see `Rehearsing`.
        dirty: makes samples dirty; None: the objective does.
    """
    benign_sum_D = None
    if rehearsal and start == "foreseen" and view.knowledge != "full":
        honest_MD = view.train([certain(own) for own in rehearsed(view, rehearsal, view.global_D)])
        _, benign_sum_D = foreseen(view, honest_MD)
    start_D = start_model(view, start, benign_sum_D)
    make, clean = dirty or view.dirty, view.own_samples
    wanted = [dirty(own) for own in clean] if dirty else view.dirty_samples
    if rehearsal:
        clean = rehearsed(view, rehearsal, start_D)
        wanted = [as_probabilities(make(certain(own)), view.classes) for own in clean]
    mixed = [
        mix(own, wished, poison_fraction, view.generator("mix", row))
        for row, (own, wished) in enumerate(zip(clean, wanted, strict=True))
    ]
    return view.train(mixed, client, callbacks, start_D)


def boosted(updates_MD: Tensor, boost: float, max_norm: float | None = None, trained: int | None = None) -> Tensor:
    """The updates times min(boost, max_norm / ||update||): scaled as far as a bound on the norm lets pass (eq. 5).

    Running statistics, the columns from `trained` on, are scaled down with the rest, but never up.

    Example:
        >>> boosted(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), boost=2.0, max_norm=5.0)
        tensor([[3.0000, 4.0000],
                [0.6000, 0.8000]])
    """
    trained = updates_MD.shape[1] if trained is None else trained
    if max_norm is None:
        return scaled(updates_MD, boost, trained)
    norms_M1 = updates_MD.norm(dim=1, keepdim=True).clamp(min=torch.finfo(updates_MD.dtype).tiny)
    return scaled(updates_MD, (max_norm / norms_M1).clamp(max=boost), trained)


def nothing_dirty(view: View) -> int:
    """How many attackers hold nothing that the objective could make dirty, and train honestly."""
    pairs = zip(view.own_samples, view.dirty_samples, strict=True)
    return sum(len(own) == len(bad) and torch.equal(own.y, bad.y) and alike(own.x, bad.x) for own, bad in pairs)


class BackdoorTraining(Rehearsing):
    """An attack that trains on clean and dirty samples together.

    Attributes:
        boost: factor on the update; None: 1 / (eta sum of the attackers' shares of all weights), which replaces the model when
            the benign updates cancel out. The shares are known with full knowledge; otherwise equal weights are assumed,
            C / (eta M).
        poison_fraction: share of dirty samples in the attackers' training data.
        epochs: local epochs of the attackers; None: as everybody.
        lr_factor: the attackers' learning rate relative to that of the federation.
        max_norm: largest norm of a submitted update; None: none.
        start: where the attackers train from: the broadcast model as printed, which takes the benign updates to cancel out; or
            the model that the benign updates alone would lead to. Benign clients undo together what an earlier attack left,
            so that from the broadcast model success comes and goes when every round is attacked.
        radius: of the ball that local training stays in, for what is submitted, so that training has radius / boost;
            None: no ball (projected gradient descent, PGD).
        projection: the ball's norm.
        project_every: local steps between projections; the last one is always projected.
    """

    serves: ClassVar[tuple[str, ...]] = ("relabel", "samples", "backdoor")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=Trigger)
    boost: Annotated[float | None, Tunable(1, 50, log=True)] = Field(default=1.0, gt=0)
    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.3, gt=0, lt=1)
    epochs: Annotated[int | None, Tunable(1, 6, integer=True)] = Field(default=None, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 1, log=True)] = Field(default=1.0, gt=0)
    max_norm: float | None = Field(default=None, gt=0)
    start: Annotated[Start, Choice(("global", "foreseen"))] = "global"
    radius: float | None = Field(default=None, gt=0)
    projection: Literal["l2", "linf"] = "l2"
    project_every: int = Field(default=1, ge=1)

    def cautions(self, experiment: "Experiment") -> list[str]:
        """The default boost is made for a server whose step grows with the update, and needs to know the weights."""
        return boost_cautions(self.name, self.boost, self.knowledge, experiment)

    def boost_in(self, view: View) -> float:
        """The factor in this round."""
        return self.boost or replacing_boost(view)

    def callbacks(self, view: View, *more: "Callable[[], Callback]") -> "Callable[[], list[Callback]]":
        """Makes what constrains local training: what an attack adds, then the ball."""
        makers = list(more)
        if self.radius:
            radius = self.radius / self.boost_in(view)
            makers.append(lambda: callbacks.NormBall(radius, self.projection, self.project_every))
        return lambda: [make() for make in makers]

    def trained(
        self, view: View, *more: "Callable[[], Callback]", dirty: Callable[[Samples], Samples] | None = None
    ) -> Tensor:
        """`[M, D]` what the attackers have learnt from clean and dirty samples, before any boost."""
        client = attacker_client(view.client, self.epochs, self.lr_factor)
        callbacks = self.callbacks(view, *more)
        return backdoored(view, self.poison_fraction, client, callbacks, self.start, self.rehearsal, dirty)

    def sent(self, view: View, updates_MD: Tensor, state: State, **metrics: float) -> Poisoned:
        """What is submitted: the updates, boosted as far as the norm allows."""
        boost = self.boost_in(view)
        figures = {"boost": boost, **metrics}
        if without := nothing_dirty(view):
            figures["honest"] = float(without)
        return Poisoned(boosted(updates_MD, boost, self.max_norm, view.flat.trained), state, figures)
