"""FL-WBC: benign clients perturb the parameters that their local training leaves alone, where an old attack survives.

References:
    Sun, Li, DiValentin, Hassanzadeh, Chen, Li, "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated
    Learning from a Client Perspective", NeurIPS 2021, eqs. 8-12.
"""

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from fl_lightning.callbacks._contract import generators_of, n_stacked, one_client_names


def laplace(like: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Laplace noise of the given scale, drawn on the CPU so that every device sees the same numbers."""
    uniform = torch.rand(like.shape, dtype=like.dtype, generator=generator).mul_(2).sub_(1)
    # 1 - |u| is 0 with probability 2^-24, whose logarithm would be infinite.
    magnitude = uniform.abs().neg_().add_(1).clamp_(min=torch.finfo(like.dtype).eps / 4).log_().mul_(-scale)
    return (magnitude * uniform.sign()).to(like.device)


def perturb(change: Tensor, noise: Tensor) -> Tensor:
    """The noise where it is at least as large as the gradient's change between two local steps, and 0 elsewhere.

    U ⊙ M with M = 1 where |g_i - g_{i-1}| <= |U|.

    Args:
        change: g_i - g_{i-1}, any shape.
        noise: U, of the same shape.

    Example:
        >>> perturb(torch.tensor([0.0, 0.6]), torch.tensor([0.3, 0.3]))
        tensor([0.3000, 0.0000])
    """
    return noise * (change.abs() <= noise.abs())


class FLWBC(Callback):
    r"""After each local step but the first, adds Laplace noise where the gradient has hardly changed.

    $w_{i+1} = \hat w_{i+1} + \eta\, U_i \odot M_i$, with $M_i = 1$ where $|g_i - g_{i-1}| \le |U_i|$; $\hat w_{i+1}$ is the
    model after the optimizer's step, $\eta$ its learning rate, and $g_i$ the gradient at the model before that step. Only
    tensors whose name contains `weight` are perturbed. With momentum or Adam the mask still looks at gradients.

    Works in any Trainer. A module of stacked clients has `n_stacked` and `generators`, one a client, and `parameter_names`
    where its `[C, ...]` parameters are named otherwise than in one client; the numbers are the same. Without `generators` the
    global one is used.

    Args:
        std: strength of the noise, at least 0: its standard deviation s, that is a Laplace scale of s / sqrt(2).
        scale: take `std` for the Laplace scale instead, as the authors' code does.
        mask: False perturbs everything: the control experiment.

    Attributes:
        density: share of the entries that the mask let through, over the fit so far; NaN before the second local step.
    """

    cites: ClassVar[tuple[str, ...]] = ("sun2021flwbc",)
    """Keys of the papers in `references.bib`."""
    stackable = True

    def __init__(self, std: float = 0.4, scale: bool = False, mask: bool = True):
        if not std >= 0:
            raise ValueError(f"std must be at least 0, got {std}")
        self.std = std
        self.scale = scale
        self.mask = mask
        self._forget()

    def _forget(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self._passed = torch.zeros(())
        self._entries = 0

    @property
    def density(self) -> float:
        """Share of the entries that were perturbed."""
        return float(self._passed) / self._entries if self._entries else float("nan")

    @property
    def metrics(self) -> dict[str, float]:
        """What a fit reports: the density, if there was a second local step."""
        return {"density": self.density} if self._entries else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A round starts: its first step has no gradient to compare with."""
        self._forget()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Copy the gradients, as the optimizer is free to overwrite them."""
        self._now = {n: p.grad.detach().clone() for n, p in _weights(pl_module).items() if p.grad is not None}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Perturb, then remember the gradients."""
        if not self._now:  # the optimizer has not stepped: gradients are being accumulated
            return
        rates = {id(p): group["lr"] for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        weights = _weights(pl_module)
        for name, gradient in self._now.items():
            if name in self._before:
                parameter = weights[name]
                noise = self._noise(parameter, pl_module)
                step = perturb(gradient - self._before[name], noise) if self.mask else noise
                parameter.add_(step, alpha=rates[id(parameter)])
                self._passed = self._passed.to(step.device) + step.count_nonzero()
                self._entries += step.numel()
        self._before, self._now = self._now, {}

    def _noise(self, parameter: Tensor, module: LightningModule) -> Tensor:
        scale = self.std if self.scale else self.std / 2**0.5
        generators = generators_of(module)
        if n_stacked(module) == 1:
            return laplace(parameter, scale, generators[0])
        return torch.stack([laplace(row, scale, own) for row, own in zip(parameter, generators, strict=True)])


def _weights(module: LightningModule) -> dict[str, Tensor]:
    """The parameters that are perturbed, by name, in the module's order."""
    named = dict(module.named_parameters())
    names = one_client_names(module, named)
    return {n: p for n, p in zip(names, named.values(), strict=True) if "weight" in n and p.requires_grad}
