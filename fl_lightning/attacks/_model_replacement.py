"""Model replacement: a backdoored model, boosted so that the mean becomes it.

References:
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eq. 3: L = (n / eta) (X - G) + G; algorithm 1 and
    eq. 4 (constrain-and-scale), eq. 5 (train-and-scale).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import BackdoorTraining
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


class ModelReplacement(BackdoorTraining):
    r"""Malicious clients train a backdoor beside the main task and boost the update to replace the global model.

    Constrain-and-scale: the attackers minimise $\alpha L_{class} + (1 - \alpha) L_{ano}$ (here divided by alpha, so that alpha
    does not act as a learning rate), with $L_{ano} = \lVert X - G \rVert^2$, or its square root as in the released code.
    Train-and-scale: they scale up to a norm that the server lets pass. With an adaptive server optimizer the default boost means
    nothing: the server's step does not grow with the update.

    Attributes:
        alpha: weight of the classification loss against the distance to the global model; 1: no constraint.
        anomaly: L_ano: the squared distance, or the distance.
    """

    name: ClassVar[str] = "model_replacement"
    cites: ClassVar[tuple[str, ...]] = ("bagdasaryan2020how",)

    boost: Annotated[float | None, Tunable(1, 50, log=True)] = Field(default=None, gt=0)
    alpha: float = Field(default=1.0, gt=0, le=1)
    anomaly: Literal["l2_squared", "l2"] = "l2_squared"

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on clean and dirty samples together, then boost."""
        weight = (1 - self.alpha) / self.alpha
        # ProximalPull is rho / 2 times the squared distance, or rho times the distance
        rho = 2 * weight if self.anomaly == "l2_squared" else weight
        pull = [lambda: callbacks.ProximalPull(rho, squared=self.anomaly == "l2_squared")] if rho else []
        return self.sent(view, self.trained(view, *pull), {})
