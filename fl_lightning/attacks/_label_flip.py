"""Label flipping: malicious clients train honestly on dirty labels.

References:
    Biggio et al., "Poisoning attacks against support vector machines", ICML 2012; the label map 0 -> 9, y -> y - 1 is that
    of Wei et al., "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", section V.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._objectives import LabelMap, Objective
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State
from fl_lightning.registry import Slot, component


@component
class LabelFlip(Attack):
    """Malicious clients train on dirty labels, as the objective maps them.

    Attributes:
        boost: factor on the submitted update; 1 is plain data poisoning.
    """

    name: ClassVar[str] = "label_flip"
    serves: ClassVar[tuple[str, ...]] = ("label_map", "target_samples", "trigger")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    boost: Annotated[float, Tunable(1, 20, log=True)] = Field(default=1.0, ge=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on the dirty samples."""
        return Poisoned(self.boost * view.train(view.dirty_samples))
