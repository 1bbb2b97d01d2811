"""A network seen as a function of one parameter vector `[D]`: the form in which servers and attackers handle it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_lightning.aggregators import last_layer, layout_of
from fl_lightning.data import Inputs, Samples, pieces
from fl_lightning.models._base import Loss
from fl_lightning.models._lightning import UserModule
from fl_lightning.models._losses import PLAIN, SampleLoss, predict
from fl_lightning.models._statistics import Buffers, frozen

__all__ = ["FlatNetwork"]

CHUNK = 4096
"""Inputs that are scored at once: enough to keep the cores busy, little enough to stay in memory."""


class FlatNetwork:
    """The architecture of a federation and its loss, evaluated at any parameter vector.

    The vector holds what is federated: trained parameters first, then the running statistics that the policy `buffers` lets
    travel. Frozen parameters stay in the network and out of the vector, unless all are federated.

    Args:
        network: the architecture; its own parameters are only read by `vector`.
        loss: the per-sample loss; a name stands for the plain one of that form. A user's module with a method
            `sample_losses(scores, y)` brings its own.
        federate: `trainable`: parameters that require a gradient; `all`: frozen ones, too, which nobody trains.
        buffers: whether statistics travel; see `with_policy`, which the network has been through.

    Attributes:
        trained: how many entries of the vector, the first ones, are parameters; the rest are statistics.
        layout: which tensors the entries belong to.
        loss: what scores mean: the form of the loss.
        sample_loss: scores `[B, K]` and targets to losses `[B]`.
        trainable: names of the parameters that local training moves.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss | SampleLoss,
        federate: Literal["trainable", "all"] = "trainable",
        buffers: Buffers = "average",
    ):
        self.network = network
        self.federate = federate
        self.buffers = buffers
        self.chosen_loss = loss if isinstance(loss, SampleLoss) else PLAIN[loss]
        self.loss = self.chosen_loss.form
        self.sample_loss: Callable[[Tensor, Tensor], Tensor] = self.chosen_loss
        if isinstance(network, UserModule) and callable(brought := getattr(network.module, "sample_losses", None)):
            self.sample_loss = brought
        tensors = self._tensors()
        self.names = list(tensors)
        self.shapes = [part.shape for part in tensors.values()]
        self.sizes = [part.numel() for part in tensors.values()]
        self.trained = sum(part.numel() for part in self._parameters().values())
        self.layout = layout_of(network, self.names, self.shapes, self.trained)
        self.trainable = {name for name, part in network.named_parameters() if part.requires_grad}
        self._resting = {name: part.clone() for name, part in network.named_buffers() if name not in tensors}

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters, then the buffers that are part of the model's state, hold real numbers and travel."""
        if self.buffers != "average":
            return self._parameters()
        kept = self.network.state_dict(keep_vars=True)
        resting = {id(part) for module in self.network.modules() if frozen(module) for part in module.buffers()}
        statistics = {
            name: part
            for name, part in self.network.named_buffers()
            if name in kept and part.is_floating_point() and id(part) not in resting
        }
        return {**self._parameters(), **statistics}

    def _parameters(self) -> dict[str, Tensor]:
        """The parameters that are federated."""
        every = self.federate == "all"
        return {name: part for name, part in self.network.named_parameters() if every or part.requires_grad}

    def like(self, network: nn.Module) -> "FlatNetwork":
        """Another network of the same architecture, seen in the same way."""
        return FlatNetwork(network, self.chosen_loss, self.federate, self.buffers)

    @property
    def dim(self) -> int:
        """Number of parameters D."""
        return sum(self.sizes)

    def vector(self) -> Tensor:
        """`[D]` a copy of the network's current parameters."""
        return torch.cat([part.detach().flatten() for part in self._tensors().values()])

    def fresh(self, generator: torch.Generator) -> Tensor:
        """`[D]` a new random initialisation of the same architecture, with the running statistics that it starts with.

        Layers draw as their `reset_parameters` does; parameters of layers without one are drawn from N(0, 0.02^2).

        Args:
            generator: CPU generator; the global random state stays untouched.
        """
        network = deepcopy(self.network).cpu()
        drawn: set[Tensor] = set()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for module in network.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
                    drawn.update(module.parameters(recurse=False))
            for parameter in network.parameters():
                if parameter not in drawn:
                    parameter.normal_(std=0.02)
        return self.like(network).vector().to(self.vector())

    def split(self, theta_D: Tensor) -> dict[str, Tensor]:
        """The parameter tensors by name; views into `theta_D` (a leading stack dimension `[C, D]` is kept)."""
        parts = torch.split(theta_D, self.sizes, dim=-1)
        named = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.view(*theta_D.shape[:-1], *shape) for name, part, shape in named}

    @torch.no_grad()
    def load_(self, theta_D: Tensor) -> nn.Module:
        """Copy a vector into the network's own parameters and return the network."""
        for own, part in zip(self._tensors().values(), self.split(theta_D).values(), strict=True):
            own.copy_(part)
        for name, part in self.network.named_buffers():
            if name in self._resting and part.shape == self._resting[name].shape:
                part.copy_(
                    self._resting[name]
                )  # what one client's forward passes have moved is not the next one's start
        return self.network

    def scores(self, theta_D: Tensor, x: Inputs) -> Tensor:
        """`[n, K]` scores in eval mode, without gradients."""
        parameters = self.split(theta_D)
        with self.eval_mode(), torch.inference_mode():
            return torch.cat([functional_call(self.network, parameters, (part,)) for part in pieces(x, CHUNK)])

    def features(self, theta_D: Tensor, x: Inputs) -> Tensor:
        """`[n, H]` inputs of the classifier, the last linear layer, in eval mode, without gradients.

        Raises:
            ConfigError: the last layer is not linear.
        """
        self.layout.classifier  # noqa: B018 - raises
        found = last_layer(self.network)
        assert found is not None
        seen: list[Tensor] = []
        handle = found[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        try:
            self.scores(theta_D, x)
        finally:
            handle.remove()
        return torch.cat(seen)

    def losses(self, theta_D: Tensor, samples: Samples) -> Tensor:
        """`[n]` per-sample losses in eval mode, without gradients."""
        return self.sample_loss(self.scores(theta_D, samples.x), samples.y)

    def accuracy(self, theta_D: Tensor, samples: Samples) -> float:
        """Share of samples classified as `samples.y`."""
        return float((predict(self.scores(theta_D, samples.x)) == samples.y).double().mean())

    def gradient(self, theta_D: Tensor, samples: Samples) -> Tensor:
        """`[D]` gradient of the mean loss over all samples, in eval mode."""
        total_D, theta_D = torch.zeros_like(theta_D), theta_D.detach().requires_grad_()
        with self.eval_mode(), torch.enable_grad():
            for x, y in zip(pieces(samples.x, CHUNK), torch.split(samples.y, CHUNK), strict=True):
                loss = self.sample_loss(self.differentiable_scores(theta_D, x), y).sum() / len(samples)
                total_D += torch.autograd.grad(loss, theta_D)[0]
        return total_D

    def differentiable_scores(self, theta_D: Tensor, x: Inputs) -> Tensor:
        """`[n, K]` scores in eval mode, through which gradients flow to parameters and inputs, but to no running statistics."""
        statistics = {name for name, _ in self.network.named_buffers()}
        named = self.split(theta_D)
        parameters = {name: part.detach() if name in statistics else part for name, part in named.items()}
        with self.eval_mode():
            scores: Tensor = functional_call(self.network, parameters, (x,))
        return scores

    def hessian_product(self, theta_D: Tensor, samples: Samples, vector_D: Tensor) -> tuple[Tensor, Tensor]:
        """`[D]` gradient and `[D]` Hessian times a vector of the mean loss, in eval mode; without the Hessian itself."""
        theta_D = theta_D.detach().requires_grad_()
        with self.eval_mode(), torch.enable_grad():
            loss = self.sample_loss(self.differentiable_scores(theta_D, samples.x), samples.y).mean()
            (gradient_D,) = torch.autograd.grad(loss, theta_D, create_graph=True)
            if not gradient_D.requires_grad:  # a loss that is linear in the parameters
                return gradient_D, torch.zeros_like(gradient_D)
            (product_D,) = torch.autograd.grad(gradient_D @ vector_D, theta_D, materialize_grads=True)
        return gradient_D.detach(), product_D

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """The network in eval mode, for the length of a with block."""
        before = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(before)
