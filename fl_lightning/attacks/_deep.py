"""Deep model poisoning: a backdoor kept away from the parameters that the main task needs, submitted as a boosted update.

References:
    Zhou, Xu, Wu, Zheng, "Deep Model Poisoning Attack on Federated Learning", Future Internet 13(3), 2021, eqs. 2-4.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import Start, attacker_client, backdoored, boost_cautions, replacing_boost
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.attacks._objectives import Objective, Trigger
from fl_lightning.attacks._pseudo_rehearsal import Rehearsing
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.models import FlatNetwork
from fl_lightning.registry import Slot

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

    from fl_lightning.config import Experiment

Curvature = Literal["ggn", "fisher", "hutchinson"]


def curvature(
    flat: FlatNetwork, theta_D: Tensor, samples: Samples, h: Curvature, generator: torch.Generator, probes: int = 8
) -> Tensor:
    """Diagonal curvature of the main task's mean loss at a model, negative entries 0, mean 1; see `callbacks.hessian`.

    Args:
        flat: architecture and loss.
        theta_D: where.
        samples: clean samples.
        h: which diagonal.
        generator: CPU generator of the sign vectors of `hutchinson`.
        probes: how many of them.

    Returns:
        One entry a trained parameter.
    """
    from fl_lightning.callbacks.hessian import fisher_diagonal, ggn_diagonal, hutchinson_diagonal, normalised

    named = {name: part.detach().clone() for name, part in flat.split(theta_D).items()}
    parameters = [named[name].requires_grad_() for name, _ in flat.network.named_parameters() if name in named]
    singles = [samples[torch.tensor([row], device=samples.y.device)] for row in range(len(samples))]
    shares = [torch.tensor(1 / len(samples)).to(theta_D)] * len(samples)

    def scores(part: Samples) -> Tensor:
        out: Tensor = functional_call(flat.network, named, (part.x,))
        return out

    with flat.eval_mode(), torch.enable_grad():
        if h == "ggn":
            regression = samples.y.is_floating_point()
            diagonal = ggn_diagonal((scores(one)[0] for one in singles), parameters, shares, regression)
        elif h == "fisher":
            losses = (flat.sample_loss(scores(one), one.y)[0] for one in singles)
            diagonal = fisher_diagonal(losses, parameters, shares)
        else:
            loss = flat.sample_loss(scores(samples), samples.y).mean()
            signs = [
                [torch.randint(2, p.shape, generator=generator).mul_(2).sub_(1).to(p) for p in parameters]
                for _ in range(probes)
            ]
            diagonal = hutchinson_diagonal(loss, parameters, signs)
    return torch.cat([part.flatten() for part in normalised(diagonal)])


def benign_update(global_D: Tensor, previous_D: Tensor, server_lr: float) -> Tensor:
    """`[D]` estimated mean client update of the round before: (G_t - G_{t-1}) / eta, 0 in the first round.

    Corrected here: the text leaves the division out, which makes the estimate eta times too short.
    """
    return (global_D - previous_D) / server_lr


class Deep(Rehearsing):
    r"""Deep model poisoning: model replacement that avoids the parameters with a large curvature of the main task.

    `working`: each local step sees clean and dirty samples together, with the penalty $\rho_2 \sum_r h_r (\Delta_r)^2$ and the
    pull $\rho_1 \lVert \Delta - \bar\Delta_{ben} \rVert$ on the displacement, which is boosted as a whole; without both it is
    exactly model replacement. `printed`: eqs. 2-4 to the letter. They amplify the adversarial displacement and drop the main
    one that compensates it (eta_1 against n / eta), which ruins the model for everything but the target class.

    The paper claims that rho2 > 0 makes a single shot last longer. Expect the opposite: the penalty forbids just the strong
    changes that outlive the honest clients' training.

    h is the attackers' estimate at the global model on clean samples of their own, shared by all of them. One adversarial
    round (`schedule: once`) is the paper's single shot, every round from one on (`from_round`) its multiple shots.

    Attributes:
        form: `working` or `printed`.
        rho1: strength of the pull towards the estimated benign update; 0.1 halves the displacement of LeNet under Adam, and with
            it the success.
        rho2: strength of the penalty; h has mean 1 and entries in the hundreds, so that SGD diverges where 2 rho2 h_r lr > 2.
        h: `ggn` (exact for ReLU networks without normalisation), `fisher` (empirical) or `hutchinson`; clamped at 0.
        curvature_samples: clean samples that h is estimated on.
        boost: factor on the update (`printed`: on the adversarial displacement); None: C / (eta M), with full knowledge
            1 / (eta sum of the attackers' shares of the weights).
        poison_fraction: share of dirty samples in the attackers' training data (`working`).
        poison_samples: size of the shared dirty set D_p (`printed`).
        main_weight: eta_1, the factor on the main displacement (`printed`).
        epochs: local epochs of the attackers; None: as everybody.
        lr_factor: the attackers' learning rate relative to that of the federation.
        start: where the attackers train from (`working`), as for `model_replacement`.
    """

    name: ClassVar[str] = "deep"
    cites: ClassVar[tuple[str, ...]] = ("zhou2021deep",)
    serves: ClassVar[tuple[str, ...]] = ("relabel", "samples", "backdoor")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=Trigger)
    form: Literal["working", "printed"] = "working"
    rho1: Annotated[float, Tunable(1e-3, 10, log=True)] = Field(default=0.1, ge=0)
    rho2: Annotated[float, Tunable(1e-3, 10, log=True)] = Field(default=0.01, ge=0)
    h: Annotated[Curvature, Choice(("ggn", "fisher", "hutchinson"))] = "ggn"
    curvature_samples: int = Field(default=100, ge=1)
    boost: Annotated[float | None, Tunable(1, 250, log=True)] = Field(default=None, gt=0)
    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.3, gt=0, lt=1)
    poison_samples: int = Field(default=100, ge=1)
    main_weight: float = Field(default=0.05, ge=0)
    epochs: Annotated[int | None, Tunable(1, 6, integer=True)] = Field(default=None, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 1, log=True)] = Field(default=1.0, gt=0)
    start: Annotated[Start, Choice(("global", "foreseen"))] = "global"

    def cautions(self, experiment: "Experiment") -> list[str]:
        """The default boost is made for a server whose step grows with the update, and needs to know the weights."""
        return boost_cautions(self.name, self.boost, self.knowledge, experiment)

    def poison(self, view: View, state: State) -> Poisoned:
        """Estimate h, train with it, boost."""
        client = attacker_client(view.client, self.epochs, self.lr_factor)
        boost = self.boost or replacing_boost(view)
        benign_D = benign_update(view.global_D, view.previous_D, view.server_lr)[: view.flat.trained]
        curvature_D = self._curvature(view)
        if self.form == "printed":
            dirty = view.dirty(view.draw(self.poison_samples, view.generator("dirty")))

            def printed() -> "list[Callback]":
                from fl_lightning.attacks._adversarial_steps import MainThenAdversarial

                return [
                    MainThenAdversarial(
                        dirty,
                        client.optimizer,
                        client.batch_size,
                        self.main_weight,
                        boost,
                        self.rho1,
                        self.rho2,
                        benign_D,
                        curvature_D,
                    )
                ]

            return Poisoned(view.train(view.own_samples, client, printed), metrics={"boost": boost})

        def working() -> "list[Callback]":
            made: list[Callback] = []
            if self.rho1:
                made.append(callbacks.ProximalPull(self.rho1, squared=False, offset=benign_D))
            if self.rho2:
                made.append(callbacks.HessianRegularizer(self.rho2, curvature=curvature_D))
            return made

        updates_MD = backdoored(view, self.poison_fraction, client, working, self.start, self.rehearsal)
        displacement = float(updates_MD.norm(dim=1).mean())
        return Poisoned(
            scaled(updates_MD, boost, view.flat.trained), metrics={"boost": boost, "displacement": displacement}
        )

    def _curvature(self, view: View) -> Tensor:
        if not self.rho2:
            return torch.zeros_like(view.global_D[: view.flat.trained])
        samples = view.draw(self.curvature_samples, view.generator("curvature"))
        return curvature(view.flat, view.global_D, samples, self.h, view.generator("signs"))
