"""Model replacement: a backdoored model, boosted so that the mean becomes it.

References:
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eq. 3: L = (n / eta) (X - G) + G.
"""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._objectives import Objective, Trigger
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot, component


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
    count = max(1, round(len(clean) * fraction / (1 - fraction)))
    rounds = -(-count // len(dirty))
    order = torch.cat([torch.randperm(len(dirty), generator=generator) for _ in range(rounds)])[:count]
    return Samples.cat([clean, dirty[order.to(dirty.y.device)]])


def full_boost(n_clients: int, n_malicious: int, server_lr: float) -> float:
    """The factor with which M equal attackers among C equal clients replace the global model: C / (eta M)."""
    return n_clients / (server_lr * n_malicious)


@component
class ModelReplacement(Attack):
    """Malicious clients train a backdoor beside the main task and boost the update to replace the global model.

    Attributes:
        boost: factor on the update; None: C / (eta M), which replaces the model when the benign updates cancel out.
        poison_fraction: share of dirty samples in the attackers' training data.
        epochs: local epochs of the attackers; None: as everybody.
        lr_factor: the attackers' learning rate relative to that of the federation.
    """

    name: ClassVar[str] = "model_replacement"
    serves: ClassVar[tuple[str, ...]] = ("label_map", "target_samples", "trigger")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=Trigger)
    boost: Annotated[float | None, Tunable(1, 50, log=True)] = Field(default=None, gt=0)
    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.3, gt=0, lt=1)
    epochs: Annotated[int | None, Tunable(1, 6, integer=True)] = Field(default=None, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 1, log=True)] = Field(default=1.0, gt=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on clean and dirty samples together, then boost."""
        mixed = [
            mix(own, dirty, self.poison_fraction, view.generator("mix", row))
            for row, (own, dirty) in enumerate(zip(view.own_samples, view.dirty_samples, strict=True))
        ]
        optimizer = replace(view.client.optimizer, lr=self.lr_factor * view.client.optimizer.lr)
        client = replace(view.client, optimizer=optimizer)
        if self.epochs:
            client = replace(client, epochs=self.epochs, steps=None)
        boost = self.boost or full_boost(view.n_clients, view.n_malicious, view.server_lr)
        updates_MD: Tensor = boost * view.train(mixed, client)
        return Poisoned(updates_MD, metrics={"boost": boost})
