"""Adversarial neuron pruning: after the last round, units whose small perturbation would bring a backdoor out are removed.

References:
    Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021, equation 6 and algorithm 1.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Layout
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._root import draw_for_later, root_rows
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


class Units:
    """The units of a model's layers before the classifier, and how factors on them act on the parameters.

    Args:
        layout: of the model.
        dimension: D.

    Attributes:
        weights_D: `[D]` int64, the unit whose weight a column is, -1 for all other columns.
        biases_D: `[D]` int64, the unit whose bias a column is, -1 for all other columns.
        count: number of units.
    """

    def __init__(self, layout: Layout, dimension: int):
        self.weights_D = torch.full((dimension,), -1)
        self.biases_D = torch.full((dimension,), -1)
        self.count = 0
        named = {layer.name: layer for layer in layout.layers}
        for layer in layout.layers:
            if not layer.trained or len(layer.shape) < 2 or layer.slice == layout.classifier.weight:
                continue
            units = torch.arange(self.count, self.count + layer.shape[0])
            size = layer.slice.stop - layer.slice.start
            self.weights_D[layer.slice] = units.repeat_interleave(size // layer.shape[0])
            bias = named.get(layer.name.removesuffix("weight") + "bias")
            if bias is not None:
                self.biases_D[bias.slice] = units
            self.count += layer.shape[0]

    def factors(self, weights_U: Tensor, biases_U: Tensor) -> Tensor:
        """`[D]` factors of the parameters from factors of the units."""
        one = weights_U.new_ones(1)
        return torch.cat([weights_U, one])[self.weights_D] * torch.cat([biases_U, one])[self.biases_D]

    def gathered(self, values_D: Tensor, units_D: Tensor) -> Tensor:
        """`[U]` sums of a vector's entries over the columns of each unit."""
        sums = values_D.new_zeros(self.count + 1)
        return sums.index_add_(0, units_D.to(values_D.device) % (self.count + 1), values_D)[: self.count]


class Anp(Defense):
    """Prunes units whose weights an adversary would perturb, found on the server's samples after the last round.

    Masks m in [0, 1] on the units minimise alpha L(m w, b) + (1 - alpha) max L((m + delta) w, (1 + xi) b) over delta, xi in
    [-eps, eps], the inner maximum by one step along the sign of the gradient.

    Attributes:
        alpha: share of the loss without perturbation.
        eps: largest perturbation.
        steps: of the masks.
        lr: of the masks; their momentum is 0.9.
        batch_size: of a step.
        bound: units with a smaller mask go.
        root_samples: how many validation samples are used.
    """

    name: ClassVar[str] = "anp"
    cites: ClassVar[tuple[str, ...]] = ("wu2021adversarial",)
    needs_samples: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    alpha: Annotated[float, Tunable(0.05, 0.9)] = Field(default=0.2, ge=0, le=1)
    eps: Annotated[float, Tunable(0.05, 1, log=True)] = Field(default=0.4, ge=0)
    steps: int = Field(default=2000, ge=1)
    lr: float = Field(default=0.2, gt=0)
    batch_size: int = Field(default=128, ge=1)
    bound: Annotated[float, Tunable(0.05, 0.9)] = Field(default=0.2, ge=0, le=1)
    root_samples: int = Field(default=500, ge=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay as they are; the samples of later are drawn."""
        return draw_for_later(self.name, updates_CD, context, state, self.root_samples)

    def finish(self, global_D: Tensor, context: ServerContext, state: State) -> Tensor:
        """The model without the weights of the units whose mask is below the bound."""
        if context.layout is None:
            raise ConfigError("needs a model whose layers are known")
        units = Units(context.layout, len(global_D))
        if not units.count:
            return global_D
        kept_U = (self.masks(global_D, units, context, state) >= self.bound).to(global_D)
        return global_D * units.factors(kept_U, torch.ones_like(kept_U))

    def masks(self, global_D: Tensor, units: Units, context: ServerContext, state: State) -> Tensor:
        """`[U]` the masks after all steps."""
        samples = need_validation(self.name, context.validation)
        samples, random = samples[root_rows(self.name, context, state, self.root_samples)], context.generator(self.name)
        mask_U, speed_U = global_D.new_ones(units.count), global_D.new_zeros(units.count)
        zero_U = torch.zeros_like(mask_U)

        def slopes(delta_U: Tensor, xi_U: Tensor) -> tuple[Tensor, Tensor]:
            """Gradients of the loss in the units' weight factors and bias factors."""
            model_D = global_D * units.factors(mask_U + delta_U, 1 + xi_U)
            along_D = context.gradient(model_D, batch) * global_D
            return units.gathered(along_D, units.weights_D), units.gathered(along_D, units.biases_D)

        for _ in range(self.steps):
            rows = torch.randint(len(samples), (min(self.batch_size, len(samples)),), generator=random)
            batch = samples[rows.to(samples.y.device)]
            clean_U, bias_U = slopes(zero_U, zero_U)
            worst_U, _ = slopes(self.eps * clean_U.sign(), self.eps * bias_U.sign())
            speed_U = 0.9 * speed_U + self.alpha * clean_U + (1 - self.alpha) * worst_U
            mask_U = (mask_U - self.lr * speed_U).clamp(0, 1)
        return mask_U
