"""Penalise the changes that the main task feels: an importance-weighted distance to the model that training started from.

References:
    Zhou, Xu, Wu, Zheng, "Deep Model Poisoning Attack on Federated Learning", Future Internet 13(3), 2021, eq. 3.
    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (the same penalty with the Fisher
    information).
    Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007 (`hutchinson_diagonal`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_lightning.callbacks._contract import client_of, generators_of, n_stacked, trained_parameters

Curvature = Literal["ggn", "fisher", "hutchinson"]
CURVATURES = ("ggn", "fisher", "hutchinson")
Diagonal = list[Tensor]


def ggn_diagonal(
    scores: Iterable[Tensor], parameters: Sequence[Tensor], weights: Iterable[Tensor], regression: bool = False
) -> Diagonal:
    r"""Diagonal of the generalised Gauss-Newton matrix of a weighted loss.

    $h_r = \sum_b a_b \sum_c p_{bc} (\partial_r \log p_{bc})^2$ for the cross-entropy, and
    $\sum_b a_b \sum_c 2 (\partial_r s_{bc})^2$ for the squared error. One backward pass a sample and class. It is the exact
    diagonal of the Hessian for networks of linear layers, ReLU and max-pooling, in which every score is piecewise linear in
    each single parameter; with normalisation layers it is not.

    Args:
        scores: `[K]` for each sample, best with a graph of its own, through which nothing but this sample goes. Stacked clients
            have a leading dimension C here, in parameters, weights and result.
        parameters: leaves of the graphs.
        weights: weight a_b of each sample, 1 / B for the mean loss.
        regression: squared error instead of cross-entropy.
    """
    total = [torch.zeros_like(p) for p in parameters]
    for scores_K, weight in zip(scores, weights, strict=True):
        outputs_K = scores_K if regression else scores_K.log_softmax(-1)
        factors_K = torch.full_like(scores_K, 2.0) if regression else outputs_K.detach().exp()
        for output, factor in zip(outputs_K.unbind(-1), factors_K.unbind(-1), strict=True):
            _add_square(total, output, factor * weight, parameters)
    return total


def fisher_diagonal(losses: Iterable[Tensor], parameters: Sequence[Tensor], weights: Iterable[Tensor]) -> Diagonal:
    r"""Diagonal of the empirical Fisher information, $h_r = \sum_b a_b (\partial_r \ell_b)^2$: one backward pass a sample.

    The square of the batch's mean gradient is something else, and mostly far too small. Arguments as in `ggn_diagonal`.
    """
    total = [torch.zeros_like(p) for p in parameters]
    for loss, weight in zip(losses, weights, strict=True):
        _add_square(total, loss, weight, parameters)
    return total


def hutchinson_diagonal(loss: Tensor, parameters: Sequence[Tensor], signs: Sequence[Sequence[Tensor]]) -> Diagonal:
    r"""Unbiased estimate of the Hessian's diagonal: the mean of $v \odot H v$ over random sign vectors v.

    Entries can be negative, both because the Hessian's are and because the estimate is noisy.

    Args:
        loss: depends on `parameters`; for stacked clients the sum of their own losses.
        parameters: leaves of the graph.
        signs: one list of tensors of ±1 a probe, shaped as the parameters.

    Example:
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> loss = (w @ torch.tensor([[2.0, 1.0], [1.0, 3.0]]) @ w) / 2
        >>> every = [[torch.tensor(v)] for v in ([1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0])]
        >>> hutchinson_diagonal(loss, [w], every)[0].tolist()
        [2.0, 3.0]
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    total = [torch.zeros_like(p) for p in parameters]
    for v in signs:
        products = torch.autograd.grad(gradients, parameters, v, retain_graph=True, materialize_grads=True)
        for part, sign, product in zip(total, v, products, strict=True):
            part.addcmul_(sign, product, value=1 / len(signs))
    return total


def normalised(diagonal: Sequence[Tensor], rows: int = 1) -> Diagonal:
    """Negative entries set to 0, then divided by the mean over all parameters; all 0 where nothing is positive.

    A negative entry would reward a change without bound. The scale of a curvature depends on the loss reached; with mean 1
    the strength of the penalty means the same everywhere.

    Args:
        diagonal: one tensor a parameter.
        rows: number of stacked clients, each normalised by itself.

    Example:
        >>> [part.tolist() for part in normalised([torch.tensor([3.0, -1.0]), torch.tensor([1.0])])]
        [[2.25, 0.0], [0.75]]
    """
    positive = [part.clamp(min=0) for part in diagonal]
    mean_C = torch.stack([part.reshape(rows, -1).sum(1) for part in positive]).sum(0)
    mean_C = mean_C / (sum(part.numel() for part in positive) / rows)
    scale_C = torch.where(mean_C > 0, 1 / mean_C, 0.0)
    return [part * _beside(scale_C, part) for part in positive]


def _add_square(total: Diagonal, output: Tensor, weight: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add weight * gradient²; rows of stacked clients do not mix, as none depends on another's parameters."""
    gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, materialize_grads=True)
    for part, gradient in zip(total, gradients, strict=True):
        part.addcmul_(gradient, gradient * _beside(weight, gradient))


def _beside(values_C: Tensor, like: Tensor) -> Tensor:
    """One value a stacked client (or a single one) shaped to multiply a `[C, ...]` tensor."""
    return values_C if values_C.numel() == 1 else values_C.view(-1, *[1] * (like.ndim - 1))


class HessianRegularizer(Callback):
    r"""Adds the gradient of an importance-weighted squared distance to every local step.

    $\rho \sum_r h_r (w_r - w^0_r)^2$, gradient $2 \rho\, h \odot (w - w^0)$, where w^0 is the model at the start of the fit and
    h a curvature of the loss there: clamped at 0, divided by its mean.

    h is either given or taken from the first batch. For the latter the module is called, `module(x)`, on batches `(x, y)`;
    integer targets mean the cross-entropy, others the squared error. Works in any Trainer; a module of stacked clients
    (`n_stacked`, `generators`) gives each its own h, from scores `[C, B, K]` of batches `(x, y, weights)`.

    Args:
        rho: strength, at least 0.
        h: `ggn` (K backward passes a sample), `fisher` (one; empirical), or `hutchinson` (two a probe; noisy).
        probes: random sign vectors of `hutchinson`.
        curvature: `[D]` h itself, shared by all clients; it is clamped and normalised as well.
    """

    cites: ClassVar[tuple[str, ...]] = ("zhou2021deep", "kirkpatrick2017overcoming", "bekas2007estimator")
    """Keys of the papers in `references.bib`."""
    stackable = True

    def __init__(self, rho: float, h: Curvature = "ggn", probes: int = 8, curvature: Tensor | None = None):
        if not rho >= 0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        if h not in CURVATURES:
            raise ValueError(f"h must be one of {', '.join(CURVATURES)}, got {h!r}")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.rho = rho
        self.h = h
        self.probes = probes
        self.curvature = curvature
        self._parts: list[nn.Parameter] = []
        self._start: list[Tensor] = []
        self._weights: Diagonal = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the model, and forget the curvature of the fit before."""
        self._parts = trained_parameters(pl_module, None if self.curvature is None else len(self.curvature))
        self._start = [p.detach().clone() for p in self._parts]
        self._weights = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the curvature before the first step."""
        if self.rho and not self._weights:
            given = self.curvature is not None
            diagonal = self._given(pl_module) if given else self._estimate(pl_module, batch)
            self._weights = normalised(diagonal, 1 if given else n_stacked(pl_module))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of the penalty."""
        if not self.rho:
            return
        for parameter, start, weight in zip(self._parts, self._start, self._weights, strict=True):
            if parameter.grad is not None:
                parameter.grad.addcmul_(weight, parameter - start, value=2 * self.rho)

    def _given(self, module: LightningModule) -> Diagonal:
        """The given vector, cut into the shapes of one client's parameters."""
        shapes = [p.shape if n_stacked(module) == 1 else p.shape[1:] for p in self._parts]
        vector_D = torch.as_tensor(self.curvature).to(self._start[0])
        sizes = [shape.numel() for shape in shapes]
        if len(vector_D) != sum(sizes):
            raise ValueError(f"curvature needs {sum(sizes)} entries, one a parameter, got {len(vector_D)}")
        return [part.view(shape) for part, shape in zip(torch.split(vector_D, sizes), shapes, strict=True)]

    def _estimate(self, module: LightningModule, batch: Any) -> Diagonal:
        """The curvature of every client, from its part of the batch, in eval mode."""
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            with torch.enable_grad():
                # A user's own module may take its inputs by name, or its batches as dictionaries
                client = client_of(module)
                parts = batch if client is module else client.parts_of(batch)
                return self._diagonal(client, *parts)
        finally:
            for part, mode in modes.items():
                part.training = mode

    def _diagonal(self, module: Any, x: Any, y: Tensor, weights: Tensor | None = None) -> Diagonal:
        parameters = self._parts
        weights = torch.full(y.shape[-1:], 1 / y.shape[-1]).to(self._start[0]) if weights is None else weights
        regression = y.is_floating_point()

        def scores(rows: slice) -> Tensor:
            out: Tensor = module(x[rows] if y.ndim == 1 else x[:, rows])
            if not regression and out.shape[-1] < 2:
                raise ValueError("the curvature of a classifier needs at least two scores a sample, got 1")
            return out

        def losses(rows: slice) -> Tensor:
            out, target = scores(rows).flatten(0, -2), y[..., rows]
            if regression:
                return (out.squeeze(-1) - target.flatten()).square().view_as(target)
            return F.cross_entropy(out, target.flatten(), reduction="none").view_as(target)

        single = [slice(i, i + 1) for i in range(y.shape[-1])]
        shares = weights.unbind(-1)
        if self.h == "ggn":
            return ggn_diagonal((scores(one).squeeze(-2) for one in single), parameters, shares, regression)
        if self.h == "fisher":
            return fisher_diagonal((losses(one).squeeze(-1) for one in single), parameters, shares)
        loss = (losses(slice(None)) * weights).sum()
        return hutchinson_diagonal(loss, parameters, [self._signs(module, parameters) for _ in range(self.probes)])

    def _signs(self, module: Any, parameters: Sequence[Tensor]) -> list[Tensor]:
        """±1, drawn on the CPU so that every device sees the same; for stacked clients each from its own generator."""
        generators = generators_of(module)
        if n_stacked(module) == 1:
            return [_signs(p, generators[0]) for p in parameters]
        rows = [[_signs(p[0], own) for p in parameters] for own in generators]
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2, like.shape, generator=generator).mul_(2).sub_(1).to(like)
