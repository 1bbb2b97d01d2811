"""Any attack of ByzFL that crafts a vector.

References:
    González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL: Research Framework for Robust Federated Learning", 2025.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Mean
from fl_lightning.aggregators import _byzfl_parts as byzfl
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Slot


class Byzfl(Crafted):
    """An attack of ByzFL by its name there: `{name: byzfl, rule: ALittleIsEnough, options: {tau: 1.5}}`.

    ByzFL's attackers know all honest vectors; here they get what `knowledge` grants. Running statistics stay honest.

    Attributes:
        rule: class of `byzfl.attacks`, such as `SignFlipping`, `InnerProductManipulation`, `Optimal_ALittleIsEnough`.
        options: its parameters.
        against: the rule that the `Optimal_` attacks try their strength on; any of ours, or `{name: byzfl, ...}`.
    """

    name: ClassVar[str] = "byzfl"
    cites: ClassVar[tuple[str, ...]] = ("gonzalez2025byzfl",)

    rule: str = "ALittleIsEnough"
    options: dict[str, Any] = Field(default_factory=dict)
    against: Annotated[Aggregator, Slot("aggregator")] = Field(default_factory=Mean)

    @model_validator(mode="after")
    def _known(self) -> "Byzfl":
        if self.rule == "LabelFlipping":
            raise ConfigError(
                "LabelFlipping sends the honest mean: ByzFL flips labels in its clients; use label_flip", "rule"
            )
        self._built(1)
        return self

    @property
    def finite(self) -> bool:  # type: ignore[override]
        """All but `Inf`."""
        return self.rule != "Inf"

    def _built(self, n_malicious: int) -> Any:
        own = {"agg": self._judge, "pre_agg_list": []} if self.rule.startswith("Optimal_") else {}
        return byzfl.built("attacks", {"name": self.rule, **own, **self.options}, n_malicious)

    def _judge(self, rows: Any) -> Any:
        """The rule that is attacked, on ByzFL's arrays."""
        return self.against(torch.from_numpy(rows)).update.numpy()

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of ByzFL's vector."""
        known_HP = known_parameters(view)
        attack = self._built(view.n_malicious)
        crafted_P: Tensor = byzfl.applied([attack], known_HP, view.generator("byzfl"))
        if not self.finite:
            return Poisoned(torch.full_like(view.own_updates, torch.inf), metrics={"known": float(len(known_HP))})
        return Poisoned(self.rows(view, crafted_P, known_HP.mean(0)), metrics={"known": float(len(known_HP))})
