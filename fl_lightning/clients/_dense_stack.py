"""Dense networks of many clients at once: batched products over the clients instead of `vmap`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DenseStack"]

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity)


class DenseStack:
    r"""The forward pass of C copies of a network that is a chain of dense layers and elementwise functions.

    `vmap` would store the gradient of a stacked weight transposed, and copy it; here it arrives as it is stored.

    Plain gradient descent can be folded into the backward pass: as soon as the gradient of a layer's output is known,

    $$W_c \leftarrow W_c - \eta\, \delta_c^T x_c$$

    for all clients c in one batched product that adds to the weights. The gradient of the weights, as large as all models
    together, is then never stored, and nobody else can look at it.

    Args:
        network: chain of `nn.Flatten`, `nn.Linear` with bias and elementwise layers.
        lr: learning rate of folded gradient descent on the weights; None leaves them their gradients. Biases always get theirs.

    Raises:
        ValueError: the network holds another layer; `fits` tells beforehand.
    """

    def __init__(self, network: nn.Module, lr: float | None = None):
        if not self.fits(network):
            raise ValueError(f"expected a chain of dense and elementwise layers, got {network}")
        self.layers = [(name, layer) for name, layer in network.named_modules() if type(layer) is not nn.Sequential]
        self.lr = lr

    @staticmethod
    def fits(network: nn.Module) -> bool:
        """Whether a network is such a chain, with no layer or weight used twice."""
        layers = [layer for layer in network.modules() if type(layer) is not nn.Sequential]
        parts = [*network.named_modules(remove_duplicate=False), *network.named_parameters(remove_duplicate=False)]
        return (
            type(network) is nn.Sequential
            and len({id(part) for _, part in parts}) == len(parts)
            and all(
                isinstance(layer, ELEMENTWISE)
                or (isinstance(layer, nn.Linear) and layer.bias is not None)
                or (isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1))
                for layer in layers
            )
        )

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """`[C, B, ...]` inputs to `[C, B, K]` scores under stacked parameters `[C, ...]` by name."""
        folded = self.lr is not None and not torch.is_autocast_enabled(
            x.device.type
        )  # adding in place needs one precision
        for name, layer in self.layers:
            if isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, nn.Linear):
                weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
                if folded:
                    x = _DescendingLinear.apply(x, weight, bias, self.lr)
                else:
                    x = torch.baddbmm(bias.unsqueeze(-1), weight, x.mT).mT
            else:
                x = layer(x)
        return x


class _DescendingLinear(torch.autograd.Function):
    """A dense layer whose backward pass does the weights' step of gradient descent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, lr: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lr = lr
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad.bmm(weight) if ctx.needs_input_grad[0] else None
        weight.detach().baddbmm_(grad.mT, x, alpha=-ctx.lr)
        return grad_x, None, grad.sum(1), None
