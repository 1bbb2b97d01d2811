"""Alternating minimisation: a few dirty samples, explicit boosting, and stealth by training on clean ones as well.

References:
    Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial Lens", ICML 2019, sections 3-4.
    Sun, Li, DiValentin, Hassanzadeh, Chen, Li, "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated
    Learning from a Client Perspective", NeurIPS 2021, eqs. 3 and 14.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from fl_lightning.attacks._adversarial_task import AdversarialTask
from fl_lightning.attacks._backdoor_training import attacker_client, full_boost
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._deep import benign_update
from fl_lightning.attacks._objectives import Objective, TargetSamples
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.callbacks import ProximalPull
from fl_lightning.clients import Optimizer
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot, component


def row_sum(loss: Tensor, parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    r"""$\sum_r (H \delta)_r$ for H the Hessian of a loss and delta = parameters - start; can be differentiated again.

    H is symmetric, so the sum is $\delta \cdot H 1$: one product of H with a vector of ones, no entry of H.

    Args:
        loss: depends on `parameters`.
        parameters: leaves of its graph.
        start: what delta is measured from.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    products = torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)
    return torch.stack(
        [(product * (p - s)).sum() for product, p, s in zip(products, parameters, start, strict=True)]
    ).sum()


class JointGradient(Callback):
    r"""Replaces the gradient of every step by $\alpha \nabla F_k + (1 - \alpha) \nabla (F_M + \lambda |\sum_r (H \delta)_r|)$.

    F_k is the loss of the clean batch, F_M that of a dirty one, H the Hessian of F_k and delta the displacement so far, both at
    the current model and both differentiated through. Corrected here: alpha = 1 is benign, as the text around eq. 3 says.

    Args:
        dirty: samples of the adversarial task.
        batch_size: dirty samples a step.
        alpha: weight of the clean batch, in [0, 1].
        null_space: lambda of eq. 14.
    """

    stackable = False

    def __init__(self, dirty: Samples, batch_size: int, alpha: float, null_space: float = 0.0):
        self.dirty = dirty
        self.batch_size = batch_size
        self.alpha = alpha
        self.null_space = null_space

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the start."""
        self._task = AdversarialTask(pl_module, self.dirty, self.batch_size)
        self._start = [p.detach().clone() for p in self._task.parameters]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the clean batch, whose Hessian is asked for later."""
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: TorchOptimizer) -> None:
        """Mix the gradients."""
        parameters = self._task.parameters
        with torch.enable_grad():
            objective = self._task.loss()
            if self.null_space:
                clean: Tensor = pl_module.training_step(self._batch, 0)  # type: ignore[assignment]
                objective = objective + self.null_space * row_sum(clean, parameters, self._start).abs()
            gradients = torch.autograd.grad(objective, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.mul_(self.alpha).add_(gradient, alpha=1 - self.alpha)  # type: ignore[union-attr]


class BoostedSteps(Callback):
    """Before every `stealth_steps` steps on clean batches, one boosted step of an own optimizer on a dirty batch.

    The clean steps that follow repair what the boosted step has broken; the update is submitted as it is.

    Args:
        dirty: samples of the adversarial task.
        optimizer: of the adversarial steps.
        batch_size: dirty samples a step.
        boost: factor on the displacement of each adversarial step.
        stealth_steps: clean steps after each.
    """

    stackable = False

    def __init__(self, dirty: Samples, optimizer: Optimizer, batch_size: int, boost: float, stealth_steps: int):
        self.dirty = dirty
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.boost = boost
        self.stealth_steps = stealth_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fresh optimizer for the adversarial task."""
        self._task = AdversarialTask(pl_module, self.dirty, self.batch_size)
        self._own = self.optimizer.build(pl_module.parameters())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The adversarial step."""
        if batch_idx % self.stealth_steps == 0:
            before_D = self._task.vector()
            self._task.load_(before_D + self.boost * self._task.step(self._own))


@component
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
        boost: factor on the update (`alternate`: on each adversarial step); None: C / (eta M).
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
    null_space: float = Field(default=0.0, ge=0)
    stealth_steps: Annotated[int, Tunable(1, 10, integer=True)] = Field(default=1, ge=1)
    steps: Annotated[int | None, Tunable(1, 40, integer=True)] = Field(default=None, ge=1)
    poison_samples: int = Field(default=100, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, gt=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on both tasks, then boost."""
        client = attacker_client(view.client, None, self.lr_factor, self.steps)
        boost = self.boost or full_boost(view.n_clients, view.n_malicious, view.server_lr)
        dirty = view.dirty(view.draw(self.poison_samples, view.generator("dirty")))
        benign_D = benign_update(view.global_D, view.previous_D, view.server_lr)[: view.flat.trained]

        def callbacks() -> list[Callback]:
            # The pull comes first: it belongs to the clean loss, which the mixed gradient weighs.
            pull = [ProximalPull(self.rho, squared=False, offset=benign_D)] if self.rho else []
            if self.form == "joint":
                return [*pull, JointGradient(dirty, client.batch_size, self.alpha, self.null_space)]
            return [*pull, BoostedSteps(dirty, client.optimizer, client.batch_size, boost, self.stealth_steps)]

        updates_MD = view.train(view.own_samples, client, callbacks)
        if self.form == "joint":
            updates_MD = boost * updates_MD
        return Poisoned(updates_MD, metrics={"boost": boost})
