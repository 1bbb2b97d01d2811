"""Alternating minimisation: a few dirty samples, explicit boosting, and stealth by training on clean ones as well.

References:
    Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial Lens", ICML 2019, sections 3-4.
    Sun, Li, DiValentin, Hassanzadeh, Chen, Li, "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated
    Learning from a Client Perspective", NeurIPS 2021, eqs. 3 and 14.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import attacker_client, boost_cautions, replacing_boost
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._deep import benign_update
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.attacks._objectives import Objective, TargetSamples
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State
from fl_lightning.registry import Slot

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

    from fl_lightning.config import Experiment


class AlternatingMinimization(Attack):
    r"""Malicious clients make the model misread a few shared samples, beside honest training and near the benign updates.

    `joint`: each local step follows $\alpha \nabla F_k + (1 - \alpha) \nabla F_M$ on a clean and a dirty batch (FL-WBC, eq. 3),
    and the whole update is boosted; alpha = 0 is Bhagoji's targeted poisoning by explicit boosting alone. `alternate`: a step
    on dirty samples, boosted at once, then steps on clean ones (Bhagoji's alternating minimisation). In both,
    $\rho \lVert \delta - \bar\delta_{ben} \rVert$ pulls the clean steps towards the benign update, estimated as
    $(G_t - G_{t-1}) / \eta$.

    All malicious clients share the dirty set: the targets of `target_samples`, or `poison_samples` of their own samples.

    Attributes:
        form: `joint` or `alternate`.
        boost: factor on the update (`alternate`: on each adversarial step); None: C / (eta M), with full knowledge
            1 / (eta sum of the attackers' shares of the weights).
        alpha: weight of the clean task (`joint`); 1 is honest training.
        rho: strength of the pull towards the estimated benign update.
        null_space: lambda of FL-WBC's eq. 14, which keeps the displacement where the clean loss is flat (`joint`).
        stealth_steps: clean steps after each adversarial one (`alternate`).
        steps: local steps of the attackers; None: as everybody.
        poison_samples: size of the dirty set where the objective does not give it.
        lr_factor: the attackers' learning rate relative to that of the federation.
    """

    name: ClassVar[str] = "alternating_minimization"
    cites: ClassVar[tuple[str, ...]] = ("bhagoji2019analyzing", "sun2021flwbc")
    serves: ClassVar[tuple[str, ...]] = ("relabel", "samples", "backdoor")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=TargetSamples)
    form: Literal["joint", "alternate"] = "joint"
    boost: Annotated[float | None, Tunable(1, 50, log=True)] = Field(default=None, gt=0)
    alpha: Annotated[float, Tunable(0, 0.9)] = Field(default=0.0, ge=0, le=1)
    rho: Annotated[float, Tunable(1e-4, 1, log=True)] = Field(default=0.0, ge=0)
    null_space: Annotated[float, Tunable(1e-4, 0.03, log=True)] = Field(default=0.0, ge=0)
    stealth_steps: Annotated[int, Tunable(1, 10, integer=True)] = Field(default=1, ge=1)
    steps: Annotated[int | None, Tunable(1, 40, integer=True)] = Field(default=None, ge=1)
    poison_samples: int = Field(default=100, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, gt=0)

    def cautions(self, experiment: "Experiment") -> list[str]:
        """The default boost is made for a server whose step grows with the update, and needs to know the weights."""
        return boost_cautions(self.name, self.boost, self.knowledge, experiment)

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on both tasks, then boost."""
        client = attacker_client(view.client, None, self.lr_factor, self.steps)
        boost = self.boost or replacing_boost(view)
        dirty = view.dirty(view.draw(self.poison_samples, view.generator("dirty")))
        benign_D = benign_update(view.global_D, view.previous_D, view.server_lr)[: view.flat.trained]

        def made() -> "list[Callback]":
            from fl_lightning.attacks._adversarial_steps import BoostedSteps, JointGradient

            # The pull comes first: it belongs to the clean loss, which the mixed gradient weighs.
            pull = [callbacks.ProximalPull(self.rho, squared=False, offset=benign_D)] if self.rho else []
            if self.form == "joint":
                return [*pull, JointGradient(dirty, client.batch_size, self.alpha, self.null_space)]
            return [*pull, BoostedSteps(dirty, client.optimizer, client.batch_size, boost, self.stealth_steps)]

        updates_MD = view.train(view.own_samples, client, made)
        if self.form == "joint":
            updates_MD = scaled(updates_MD, boost, view.flat.trained)
        return Poisoned(updates_MD, metrics={"boost": boost})
