"""Many clients in lock step: their parameters stacked, one Lightning fit for all of them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_lightning.clients._dense_stack import DenseStack
from fl_lightning.clients._module import LocalTraining
from fl_lightning.clients._optimizers import Optimizer
from fl_lightning.data import Samples
from fl_lightning.models import FlatNetwork, KeyedDropout, sample_masks

__all__ = ["ClientCohort", "CohortBatch", "LockStep"]


class CohortBatch(NamedTuple):
    """One local step of the first A clients of a cohort, those that are not finished yet.

    Attributes:
        x: `[A, B, ...]` inputs.
        y: `[A, B]` targets.
        weights: `[A, B]` weight of each sample in its client's mean loss; 0 fills up a smaller batch.
    """

    x: Tensor
    y: Tensor
    weights: Tensor


class LockStep:
    """The batches of several clients side by side, gathered from their samples as they are needed.

    Args:
        samples: the rows that all plans count in.
        plans: for each client its row numbers step by step; clients with more steps come first.
        dtype: of the losses; None: that of the inputs.

    Raises:
        ValueError: the plans are not sorted by their number of steps.
    """

    def __init__(self, samples: Samples, plans: Sequence[Sequence[Tensor]], dtype: torch.dtype | None = None):
        if any(len(plan) < len(after) for plan, after in pairwise(plans)):
            raise ValueError("clients must be sorted by falling number of steps")
        self.samples = samples
        steps = len(plans[0])
        self.active = [sum(len(plan) > step for plan in plans) for step in range(steps)]
        sizes = torch.tensor([[len(plan[t]) if t < len(plan) else 0 for plan in plans] for t in range(steps)])
        rows = torch.cat([plan[step] for step in range(steps) for plan in plans[: self.active[step]]])
        sizes_TC1 = sizes.unsqueeze(-1).to(rows.device)
        real_TCB = torch.arange(int(sizes.max()), device=rows.device) < sizes_TC1
        index_TCB = rows.new_zeros(real_TCB.shape).masked_scatter(real_TCB, rows)
        # a client's own first sample fills its smaller batches: finite wherever its real samples are
        self.index_TCB = torch.where(real_TCB, index_TCB, index_TCB[..., :1])
        self.weights_TCB = real_TCB.to(dtype or samples.x.dtype) / sizes_TC1.clamp(min=1)

    def __len__(self) -> int:
        return len(self.active)

    def __iter__(self) -> Iterator[CohortBatch]:
        for index_CB, weights_CB, active in zip(self.index_TCB, self.weights_TCB, self.active, strict=True):
            rows = index_CB[:active].flatten()
            # index_select is three times faster than indexing on a CPU
            x, y = self.samples.x.index_select(0, rows), self.samples.y.index_select(0, rows)
            weights_AB = weights_CB[:active]
            shape = weights_AB.shape
            yield CohortBatch(x.view(*shape, *x.shape[1:]), y.view(*shape, *y.shape[1:]), weights_AB)


class ClientCohort(LocalTraining):
    r"""Clients of one architecture that train in lock step, each on its own batches.

    The parameters are stacked, `[C, ...]`, and the loss is the sum of the clients' own mean losses,
    $L(w_1, ..., w_C) = \sum_c \frac{1}{|B_c|} \sum_{i \in B_c} \ell(w_c; x_i, y_i)$. Its gradient in row c is the
    gradient of client c alone, so autograd and every elementwise optimizer work unchanged on the stack.

    A client that has fewer steps than others drops out of the loss after its last step; momentum and weight decay
    still move its row, which is put back where it stopped after the last step of all.

    Args:
        flat: architecture and loss; the network's own parameters are not touched.
        optimizer: configuration of the local optimizer, elementwise.
        generators: one a client, in the order of the batches.
        global_D: `[D]` the model that all clients start from.
        batches: the local steps.
        watched: see `LocalTraining`. If nobody looks on, plain gradient descent on dense layers is folded into the backward
            pass (`DenseStack`).
        factor: see `LocalTraining`; all clients have the same number of steps then.

    Attributes:
        parameter_names: the names that the stacked parameters have in one client, in their order.
    """

    def __init__(
        self,
        flat: FlatNetwork,
        optimizer: Optimizer,
        generators: list[torch.Generator],
        global_D: Tensor,
        batches: LockStep,
        watched: bool = True,
        factor: Callable[[int], float] | None = None,
    ):
        super().__init__(optimizer, generators, watched, factor)
        self.flat = flat
        self.loss = flat.sample_loss
        self.parameter_names = flat.names
        self.active = batches.active
        self.drops = any(isinstance(module, KeyedDropout) for module in flat.network.modules())
        self.one_by_one = loops_over_clients(flat.network, global_D.device)
        self.dense: DenseStack | None = None
        if DenseStack.fits(flat.network) and flat.trainable == set(flat.names) == set(
            dict(flat.network.named_parameters())
        ):
            self.dense = DenseStack(
                flat.network, optimizer.lr if optimizer.plain and not watched and factor is None else None
            )
        store = _repeated if self.dense else _channels_last if self.one_by_one else _transposed
        self.stack = nn.ParameterList(store(part, self.n_stacked) for part in flat.split(global_D).values())
        for name, part in zip(flat.names, self.stack, strict=True):
            part.requires_grad_(name in flat.trainable)
        self._stopped: list[tuple[slice, list[Tensor]]] = []

    def forward(self, x: Tensor) -> Tensor:
        """`[A, B, ...]` inputs to the `[A, B, K]` scores of the first A clients, in the mode of this module."""
        network, n = self.flat.network.train(self.training), len(x)
        rows = [part if n == self.n_stacked else part[:n] for part in self.stack]
        if self.dense:
            return self.dense(dict(zip(self.flat.names, rows, strict=True)), x)
        masks = self._masks(n, x.shape[1])

        def scores(parameters: list[Tensor], masks: dict[str, Tensor], x: Tensor) -> Tensor:
            named = dict(zip(self.flat.names, parameters, strict=True)) | masks
            out: Tensor = functional_call(network, named, (x,))
            return out

        if not self.one_by_one:
            return torch.vmap(scores)(rows, masks, x)
        parts = [part.unbind() for part in rows]
        return torch.stack(
            [scores([part[i] for part in parts], {name: m[i] for name, m in masks.items()}, x[i]) for i in range(n)]
        )

    def _masks(self, n: int, batch_size: int) -> dict[str, Tensor]:
        if not (self.drops and self.training):
            return {}
        masks = [sample_masks(self.flat.network, batch_size, own) for own in self.generators[:n]]
        return {name: torch.stack([own[name] for own in masks]) for name in masks[0]}

    def batch_loss(self, batch: CohortBatch) -> Tensor:
        """Sum over the clients of the mean loss of their batch."""
        losses = self.loss(self(batch.x).flatten(0, 1), batch.y.flatten(0, 1))
        return losses @ batch.weights.flatten()

    def transfer_batch_to_device(self, batch: CohortBatch, device: torch.device, dataloader_idx: int) -> CohortBatch:
        """Nothing to do: batches are gathered on the device."""
        return batch

    def clip(self, limit: float) -> None:
        """Scale the long gradients down, each client's own."""
        grads = [part.grad for part in self.stack if part.grad is not None]
        norms_C = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        scales_C = (limit / (norms_C + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
        for grad in grads:
            grad.mul_(scales_C.view(-1, *[1] * (grad.ndim - 1)))

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: CohortBatch, batch_idx: int) -> None:
        """Remember the rows that did their last step; after the last step of all put them back."""
        active, last = self.active[batch_idx], batch_idx + 1 == len(self.active)
        remaining = active if last else self.active[batch_idx + 1]
        if remaining < active:
            stopped = slice(remaining, active)
            self._stopped.append((stopped, [part[stopped].clone() for part in self.stack]))
        if last:
            for rows, values in self._stopped:
                for part, value in zip(self.stack, values, strict=True):
                    part[rows] = value

    @torch.no_grad()
    def write_updates(self, updates_CD: Tensor, global_D: Tensor) -> None:
        """Fill `[C, D]` with the trained models minus the global model."""
        parts = self.flat.split(updates_CD).values()
        for out, trained, start in zip(parts, self.stack, self.flat.split(global_D).values(), strict=True):
            torch.sub(trained, start, out=out)


def loops_over_clients(network: nn.Module, device: torch.device) -> bool:
    """Whether each client's forward pass is run by itself: convolutions on a CPU, where grouped ones are slow."""
    return device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in network.modules())


def _repeated(part: Tensor, n: int) -> nn.Parameter:
    """One copy a client."""
    return nn.Parameter(part.repeat(n, *[1] * part.ndim))


def _channels_last(part: Tensor, n: int) -> nn.Parameter:
    """One copy a client, convolutions stored channels last: pooling is several times faster on a CPU."""
    if part.ndim != 4:
        return _repeated(part, n)
    out, depth, height, width = part.shape
    stored = part.new_empty(n, out, height, width, depth).permute(0, 1, 4, 2, 3)
    return nn.Parameter(stored.copy_(part))


def _transposed(part: Tensor, n: int) -> nn.Parameter:
    """One copy a client, matrices stored transposed: the layout in which their gradient arrives, so that nothing is copied."""
    if part.ndim != 2:
        return _repeated(part, n)
    return nn.Parameter(part.T.contiguous().repeat(n, 1, 1).transpose(-1, -2))
