"""The server step: what becomes of the aggregated update.

References:
    Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated visual classification", 2019
    (momentum).
    Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2 (Adam and Yogi, without bias correction).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.registry import Settings

__all__ = ["Server", "ServerOptimizer", "server_step"]

ServerOptimizer = Literal["sgd", "momentum", "adam", "yogi"]


def server_step(
    optimizer: ServerOptimizer,
    update_D: Tensor,
    memory: dict[str, Tensor],
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Tensor:
    r"""The direction in which the global model moves, before the server's learning rate.

    With the aggregated update $\Delta$:

    * sgd: $\Delta$
    * momentum: $m \leftarrow \beta_1 m + \Delta$, direction $m$
    * adam: $m \leftarrow \beta_1 m + (1 - \beta_1) \Delta$, $v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2$, direction
      $m / (\sqrt{v} + \tau)$
    * yogi: as adam with $v \leftarrow v - (1 - \beta_2) \Delta^2 \operatorname{sign}(v - \Delta^2)$

    $m$ starts at 0 and $v$ at $\tau^2$.

    Args:
        optimizer: which of the four.
        update_D: `[D]` the aggregated update.
        memory: m and v of the rounds before; replaced in place.
        beta1: decay of m, 0 <= beta1 < 1.
        beta2: decay of v, 0 <= beta2 < 1.
        tau: adaptivity, > 0: the smaller, the more all coordinates move alike.

    Returns:
        `[D]` the direction.

    Example:
        >>> memory: dict[str, Tensor] = {}
        >>> [float(server_step("momentum", torch.ones(1), memory, beta1=0.5)) for _ in range(3)]
        [1.0, 1.5, 1.75]
    """
    if optimizer == "sgd":
        return update_D
    m_D = memory.get("m", torch.zeros_like(update_D))
    if optimizer == "momentum":
        memory["m"] = beta1 * m_D + update_D
        return memory["m"]
    square_D = update_D.square()
    v_D = memory.get("v", torch.full_like(update_D, tau**2))
    memory["m"] = beta1 * m_D + (1 - beta1) * update_D
    if optimizer == "adam":
        memory["v"] = beta2 * v_D + (1 - beta2) * square_D
    else:
        memory["v"] = v_D - (1 - beta2) * square_D * torch.sign(v_D - square_D)
    return memory["m"] / (memory["v"].sqrt() + tau)


class Server(Settings):
    """The server step: global model + lr * direction.

    Attributes:
        lr: the server's learning rate; adam and yogi move every coordinate by about it, so that 0.01 is a start.
        optimizer: how the direction follows from the aggregated updates; see `server_step`.
        beta1: decay of the first moment.
        beta2: decay of the second moment (adam, yogi).
        tau: adaptivity (adam, yogi).
        weights: whether clients weigh as many as they have samples, or all the same.
        all_flagged: what happens when a defense flags all updates of a round: what the `method` says, all stay (`keep`), or the
            round is skipped (`skip`).
    """

    lr: float = Field(default=1.0, gt=0)
    optimizer: ServerOptimizer = "sgd"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    weights: Literal["samples", "equal"] = "samples"
    all_flagged: Literal["method", "keep", "skip"] = "method"

    def direction(self, update_D: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`server_step` as configured."""
        return server_step(self.optimizer, update_D, memory, beta1=self.beta1, beta2=self.beta2, tau=self.tau)
