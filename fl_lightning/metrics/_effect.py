"""How an attack's effect on the parameters lives on: its first-order prediction, and how flat the loss is along it.

References:
    Sun, Li, DiValentin, Hassanzadeh, Chen, Li, "FL-WBC: Enhancing Robustness against Model Poisoning Attacks in Federated
    Learning from a Client Perspective", NeurIPS 2021, eqs. 6, 7 and 13.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fl_lightning.data import Samples
from fl_lightning.models import FlatNetwork


def carried_through(
    flat: FlatNetwork, global_D: Tensor, effect_D: Tensor, batches: Sequence[Samples], lr: float
) -> Tensor:
    r"""What one client's plain SGD makes of a small deviation of the model that it starts from.

    $\prod_{i=I-1}^{0} (1 - \eta H_i)\, \delta$ with $H_i$ the Hessian of the loss on batch i at the client's i-th local model:
    one Hessian-vector product a local step. Exact where the loss is quadratic.

    Args:
        flat: architecture and loss, taken in eval mode.
        global_D: `[D]` the model that the client starts from.
        effect_D: `[D]` the deviation delta.
        batches: the client's local steps, in order.
        lr: learning rate eta.

    Returns:
        `[D]` the deviation of the trained model.
    """
    theta_D = global_D
    for batch in batches:
        gradient_D, product_D = flat.hessian_product(theta_D, batch, effect_D)
        theta_D, effect_D = theta_D - lr * gradient_D, effect_D - lr * product_D
    return effect_D


def predicted_effect(effect_D: Tensor, carried_CD: Tensor, weights_C: Tensor, server_lr: float = 1.0) -> Tensor:
    r"""The effect after a round without attack (eq. 7): $\delta_t = \sum_k p_k \prod_i (1 - \eta H_{k,i})\, \delta_{t-1}$.

    With a server learning rate s: $\delta_t = \delta_{t-1} + s\, (\sum_k p_k \delta_k - \delta_{t-1})$. It is derived for the
    mean; weights are those of the participants of the round.

    Args:
        effect_D: `[D]` delta before the round.
        carried_CD: `[C, D]` what each participant makes of it.
        weights_C: `[C]` sample counts.
        server_lr: s.

    Example:
        >>> predicted_effect(torch.ones(1), torch.tensor([[0.5], [0.9]]), torch.ones(2))
        tensor([0.7000])
    """
    mean_D = (weights_C / weights_C.sum()).to(carried_CD) @ carried_CD
    return effect_D + server_lr * (mean_D - effect_D)


def null_space(
    flat: FlatNetwork, global_D: Tensor, effect_D: Tensor, samples: Samples, generator: torch.Generator
) -> tuple[float, float]:
    r"""$\lVert H \delta \rVert$ (eq. 13) and $\lVert H r \rVert$ for a random direction r of the same norm.

    The first alone says nothing: it is small for every direction where the loss is flat. One Hessian-vector product each.

    Args:
        flat: architecture and loss.
        global_D: `[D]` where the Hessian is taken.
        effect_D: `[D]` delta.
        samples: the Hessian is that of their mean loss.
        generator: draws r.
    """
    random_D = torch.randn(len(effect_D), generator=generator).to(effect_D)
    random_D *= effect_D.norm() / random_D.norm()
    along, beside = (float(flat.hessian_product(global_D, samples, v)[1].norm()) for v in (effect_D, random_D))
    return along, beside
