"""Label flipping: malicious clients train honestly on dirty labels.

References:
    Biggio et al., "Poisoning attacks against support vector machines", ICML 2012; the label map 0 -> 9, y -> y - 1 is that
    of Wei et al., "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", section V.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._objectives import LabelMap, Objective
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot, component


def shifted(labels: Tensor, shift: int, classes: int) -> Tensor:
    """Labels y -> (y - shift) mod K; regression targets are negated.

    Example:
        >>> shifted(torch.tensor([0, 1, 5]), 1, 10)
        tensor([9, 0, 4])
    """
    return -labels if labels.is_floating_point() else (labels - shift) % classes


@component
class LabelFlip(Attack):
    """Malicious clients train on dirty labels, as the objective maps them.

    Attributes:
        boost: factor on the submitted update; 1 is plain data poisoning.
        flip: `objective`: all as the objective says (its default is the published map 0 -> 9, y -> y - 1). `per_client`:
            attackers that do not collude; each has a shift of its own, drawn when it first takes part and kept, while
            success is still counted for the objective.
    """

    name: ClassVar[str] = "label_flip"
    serves: ClassVar[tuple[str, ...]] = ("relabel", "samples", "backdoor")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    boost: Annotated[float, Tunable(1, 20, log=True)] = Field(default=1.0, ge=0)
    flip: Literal["objective", "per_client"] = "objective"

    @model_validator(mode="after")
    def _labels_to_flip(self) -> "LabelFlip":
        if self.flip == "per_client" and not isinstance(self.objective, LabelMap):
            raise ValueError(f"flip 'per_client' belongs to the objective label_map, got {self.objective.name!r}")
        return self

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on the dirty samples."""
        if self.flip == "objective":
            return Poisoned(self.boost * view.train(view.dirty_samples))
        shifts: dict[str, int] = dict(state.get("shifts", {}))
        samples = []
        for client, own in zip(view.own_clients.tolist(), view.own_samples, strict=True):
            if str(client) not in shifts:
                draw = view.generator("shift", client)
                shifts[str(client)] = 1 + int(torch.randint(max(1, view.classes - 1), (), generator=draw))
            samples.append(Samples(own.x, shifted(own.y, shifts[str(client)], view.classes)))
        return Poisoned(self.boost * view.train(samples), {"shifts": shifts})
