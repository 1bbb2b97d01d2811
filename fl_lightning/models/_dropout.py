"""Dropout whose masks are drawn outside the network, so that one client and many stacked clients see the same masks."""

import torch
from torch import Tensor, nn

__all__ = ["KeyedDropout", "draw_masks", "sample_masks"]


class KeyedDropout(nn.Module):
    """Dropout by a mask that is a buffer instead of a draw inside `forward`.

    y = x ⊙ m, where every entry of m is 1 / (1 - p) with probability 1 - p and 0 otherwise; the identity in eval mode
    and for p = 0.

    `forward` draws nothing: under `torch.func.vmap` there is no generator per client, and a fused draw would depend on
    how many clients are stacked. `draw_masks` fills the buffer from the client's own generator before each step; for
    stacked clients the masks of `sample_masks` are stacked and passed through `torch.func.functional_call` like any
    other buffer.

    Args:
        p: probability that an activation is dropped, in [0, 1).
        features: shape of one sample's activations, without the batch dimension.

    Raises:
        ValueError: p lies outside [0, 1).

    References:
        N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov: Dropout: A Simple Way to Prevent Neural
        Networks from Overfitting, Journal of Machine Learning Research 15, 2014.
    """

    mask: Tensor

    def __init__(self, p: float, features: tuple[int, ...]):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout needs 0 <= p < 1, got p={p}")
        self.p = p
        self.features = features
        self.register_buffer("mask", torch.empty(0, *features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *features]` to the same shape; the first B rows of the mask are used."""
        if not self.training or self.p == 0:
            return x
        if len(self.mask) < len(x):
            raise RuntimeError(
                f"KeyedDropout holds masks for {len(self.mask)} samples, the batch has {len(x)}: "
                "call draw_masks(network, batch_size, generator) before a training step"
            )
        return x * self.mask[: len(x)]

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """A mask `[batch_size, *features]` on the device and of the dtype of the buffer.

        The first rows do not depend on `batch_size`, nor does the generator's state afterwards.
        """
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        # float32 on the CPU whatever the network's dtype and device: the same generator gives the same mask everywhere
        kept = torch.rand(batch_size, *self.features, generator=own, dtype=torch.float32) >= self.p
        return kept.to(self.mask.device, self.mask.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        """`p` and the shape, for `print(network)`."""
        return f"p={self.p}, features={self.features}"


def sample_masks(network: nn.Module, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """New masks for every `KeyedDropout` of a network, by the name of their buffer, without touching the network.

    Args:
        network: any module; without `KeyedDropout` nothing is drawn.
        batch_size: rows of each mask, at least as many as the batch has. A sample's mask depends on its row only, so a
            short last batch and the same batch padded to full size see the same masks.
        generator: a CPU generator of this client, round and step.

    Returns:
        `{"2.mask": [batch_size, *features], ...}`, one draw a module, in the order of `network.named_modules()`.

    Example:
        Masks of two clients, stacked for `vmap(functional_call)`:

        >>> network = nn.Sequential(KeyedDropout(0.5, (3,)), nn.Linear(3, 2))
        >>> clients = [sample_masks(network, 4, torch.Generator().manual_seed(client)) for client in range(2)]
        >>> {name: tuple(torch.stack([masks[name] for masks in clients]).shape) for name in clients[0]}
        {'0.mask': (2, 4, 3)}
    """
    return {
        f"{name}.mask".lstrip("."): module.sample(batch_size, generator)
        for name, module in network.named_modules()
        if isinstance(module, KeyedDropout) and module.p > 0
    }


def draw_masks(network: nn.Module, batch_size: int, generator: torch.Generator) -> None:
    """Refill the masks of every `KeyedDropout` of a network; the numbers are those of `sample_masks`.

    Example:
        >>> dropout = KeyedDropout(0.5, (3,))
        >>> draw_masks(dropout, 4, torch.Generator().manual_seed(0))
        >>> dropout(torch.ones(4, 3)).unique().tolist()
        [0.0, 2.0]
    """
    for module in network.modules():
        if isinstance(module, KeyedDropout) and module.p > 0:
            module.mask = module.sample(batch_size, generator)
