"""Callbacks that train an adversarial task beside the main one: the local steps of two attacks.

They stand apart from their attacks, because Lightning takes seconds to import and a configuration is checked without it.

References:
    Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial Lens", ICML 2019, sections 3-4.
    Sun, Li, DiValentin, Hassanzadeh, Chen, Li, "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated
    Learning from a Client Perspective", NeurIPS 2021, eqs. 3 and 14.
    Zhou, Xu, Wu, Zheng, "Deep Model Poisoning Attack on Federated Learning", Future Internet 13(3), 2021, eqs. 2-4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from fl_lightning.attacks._adversarial_task import AdversarialTask
from fl_lightning.clients import Optimizer
from fl_lightning.data import Samples


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
                clean = self._task.clean_loss(self._batch)
                objective = objective + self.null_space * row_sum(clean, parameters, self._start).abs()
            gradients = torch.autograd.grad(objective, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is not None:  # of a module with several optimizers, one steps at a time
                parameter.grad.mul_(self.alpha).add_(gradient, alpha=1 - self.alpha)


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
        self._own = self.optimizer.build(self._task.parameters)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The adversarial step."""
        if batch_idx % self.stealth_steps == 0:
            before_D = self._task.vector()
            self._task.load_(before_D + self.boost * self._task.step(self._own))


@dataclass(eq=False)
class MainThenAdversarial(Callback):
    r"""Eqs. 2-4 to the letter: a main step on a clean batch, then an adversarial step on a dirty one, their sums kept apart.

    Main: $L_M + \rho_1 \lVert \Delta_m - \bar\Delta_{ben} \rVert$, by the Trainer's optimizer. Adversarial:
    $L_A + \rho_2 \sum_r h_r (\Delta_p)_r^2$, by one of its own. At the end of the fit the model is set to
    $G + \eta_1 \Delta_m + b \Delta_p$, so that what an engine takes for the update is what the attacker submits.

    Attributes:
        dirty: samples of the adversarial task.
        optimizer: of the adversarial steps.
        batch_size: dirty samples a step.
        main_weight: eta_1.
        boost: b, n / eta in the paper.
        rho1: strength of the pull.
        rho2: strength of the penalty.
        benign_D: the estimated benign update, one entry a trained parameter.
        curvature_D: h, likewise.
    """

    stackable: ClassVar[bool] = False

    dirty: Samples
    optimizer: Optimizer
    batch_size: int
    main_weight: float
    boost: float
    rho1: float
    rho2: float
    benign_D: Tensor
    curvature_D: Tensor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is displaced yet."""
        self._task = AdversarialTask(pl_module, self.dirty, self.batch_size, len(self.benign_D))
        self._own = self.optimizer.build(self._task.parameters)
        self._start_D = self._task.vector()
        self._adversarial_D = torch.zeros_like(self._start_D)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: TorchOptimizer) -> None:
        """The pull of the main task."""
        away_D = self._main_D() - self.benign_D
        distance = away_D.norm()
        if self.rho1 and distance > 0:
            for parameter, part in zip(self._task.parameters, self._task.split(away_D / distance), strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(part, alpha=self.rho1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The adversarial step."""
        penalty_D = 2 * self.rho2 * self.curvature_D * self._adversarial_D
        self._adversarial_D += self._task.step(self._own, penalty_D)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the submitted model together."""
        self._task.load_(self._start_D + self.main_weight * self._main_D() + self.boost * self._adversarial_D)

    def _main_D(self) -> Tensor:  # noqa: N802
        return self._task.vector() - self._start_D - self._adversarial_D
