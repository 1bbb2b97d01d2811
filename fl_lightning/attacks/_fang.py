"""What Fang's attacks share: the direction that the model is driven against, and the attacker that does not know the rule.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, sections 2.3 and 3, whose printed formulas are corrected where a docstring says so.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.defenses import State
from fl_lightning.registry import registry

FAMILY = ("fang_krum", "fang_trimmed_mean", "fang_median")


class Fang(Attack, ABC):
    """Local model poisoning: drive the global model against the direction in which it would move without the attack.

    The direction is s = sgn(w - w_Re), where w_Re is the broadcast model and w the model without an attack. With full
    knowledge w is what the server's rule makes of all honest updates; otherwise it is estimated by the mean of the honest
    models that the attackers know (corrected here: the sign, which the printed estimate lacks). Where s = 0, crafted models
    keep the broadcast value.

    Attributes:
        rule: `own` crafts for the rule in the attack's name. `random` is the attacker that does not know the server's rule:
            it crafts for one drawn afresh each round (for another rule than its own: with that attack's default settings
            where the two differ) and never looks at the server's.
    """

    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    knowledge: Knowledge = "partial"
    rule: Literal["own", "random"] = "own"

    def poison(self, view: View, state: State) -> Poisoned:
        """Craft for the chosen rule."""
        if self.rule == "own":
            return self.craft(view)
        drawn = int(torch.randint(len(FAMILY), (), generator=view.generator("rule")))
        poisoned = self.sibling(FAMILY[drawn]).craft(view)
        return poisoned._replace(metrics={**poisoned.metrics, "rule": float(drawn)})

    @abstractmethod
    def craft(self, view: View) -> Poisoned:
        """The malicious updates against this class's rule."""

    def sibling(self, name: str) -> "Fang":
        """This attack, or another of the family with the settings that both have."""
        if name == self.name:
            return self
        cls = registry("attack")[name]
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        common = {field.name for field in fields(cls)}
        other: Fang = registry("attack").build({"name": name} | {k: v for k, v in settings.items() if k in common})
        return other

    def server(self, view: View) -> Aggregator | None:
        """The server's rule; None where the attacker does not know it."""
        return None if self.rule == "random" or view.knowledge == "none" else view.aggregator

    def sees_all(self, view: View) -> bool:
        """Whether the benign updates are known, and there are any."""
        return view.knowledge == "full" and view.n_malicious < view.n_clients

    def direction(self, view: View) -> Tensor:
        """`[D]` of -1, 0, 1: where the global model would move without the attack."""
        honest_HD, server = view.known_updates, self.server(view)
        if server is None or not self.sees_all(view):
            return honest_HD.mean(0).sign()
        weights_H = torch.cat([view.own_weights, view.benign_weights])
        return server(honest_HD, weights_H).update.sign()
