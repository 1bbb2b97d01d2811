"""Training of flat parameter vectors for attacks whose loss is not that of the federation."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fl_lightning.clients import Client, Optimizer, batch_plan
from fl_lightning.data import Samples
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork


def mean_loss(flat: FlatNetwork, theta_D: Tensor, samples: Samples) -> Tensor:
    """Mean loss of the federation, through which gradients flow to parameters and inputs."""
    return flat.sample_loss(flat.differentiable_scores(theta_D, samples.x), samples.y).mean()


def batches(samples: Samples, client: Client, generator: torch.Generator) -> list[Samples]:
    """The local steps of one client on its samples."""
    return [samples[rows.to(samples.y.device)] for rows in batch_plan(len(samples), client, generator)]


def descend(
    flat: FlatNetwork,
    start_D: Tensor,
    lessons: Iterable[Samples],
    optimizer: Optimizer,
    loss: Callable[[Tensor, Samples], Tensor],
    free_D: Tensor | None = None,
    lr_of: Callable[[int], float] | None = None,
) -> Tensor:
    """Train a parameter vector.

    Args:
        flat: the architecture.
        start_D: `[D]` where to start; statistics stay as they are.
        lessons: one set of samples a step.
        optimizer: makes the optimizer.
        loss: of a parameter vector on samples.
        free_D: `[D]` bool, which coordinates move, whatever the optimizer does; None: all parameters.
        lr_of: learning rate of the n-th step; None: the optimizer's.

    Returns:
        `[D]` the trained vector.
    """
    moving_D = torch.arange(len(start_D), device=start_D.device) < flat.trained
    moving_D = moving_D if free_D is None else moving_D & free_D
    theta_D = nn.Parameter(start_D.clone())
    steps = optimizer.build([theta_D])
    for number, lesson in enumerate(lessons):
        if lr_of:
            steps.param_groups[0]["lr"] = lr_of(number)
        with torch.enable_grad():
            (gradient_D,) = torch.autograd.grad(loss(theta_D, lesson), theta_D)
        theta_D.grad = torch.where(moving_D, gradient_D, 0.0)
        if limit := optimizer.max_grad_norm:
            nn.utils.clip_grad_norm_([theta_D], limit)
        steps.step()
        with torch.no_grad():
            theta_D.copy_(torch.where(moving_D, theta_D, start_D))
    return theta_D.detach()


def head_of(flat: FlatNetwork) -> str:
    """Name of the last linear layer, if something before it has parameters, too.

    Raises:
        ConfigError: the model has no encoder before a linear head.
    """
    linear = [name for name, module in flat.network.named_modules() if isinstance(module, nn.Linear)]
    statistics = {name for name, _ in flat.network.named_buffers()}
    owners = [name.rpartition(".")[0] for name in flat.names if name not in statistics]
    if not linear or owners[-1] != linear[-1] or len(set(owners)) < 2:
        raise ConfigError("needs a model whose last layer is linear, with trained layers before it")
    name: str = linear[-1]
    return name


def head_coordinates(flat: FlatNetwork) -> Tensor:
    """`[D]` bool, which coordinates belong to the last linear layer."""
    head = head_of(flat)
    belongs = torch.tensor([name.rpartition(".")[0] == head for name in flat.names])
    return torch.repeat_interleave(belongs, torch.tensor(flat.sizes))


def features(flat: FlatNetwork, theta_D: Tensor, x: Tensor) -> Tensor:
    """`[n, F]` what the last linear layer is given, through which gradients flow to the parameters before it."""
    seen: list[Tensor] = []
    head = flat.network.get_submodule(head_of(flat))
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        flat.differentiable_scores(theta_D, x)
    finally:
        handle.remove()
    return seen[-1].flatten(1)
