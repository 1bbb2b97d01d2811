"""Fine-pruning: after the last round, units that the server's samples leave idle are removed, and the model is trained on.

References:
    Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018, section 3.
    Wu, Yang, Zhu, Mitra, "Mitigating Backdoor Attacks in Federated Learning", arXiv 2011.01767, 2020: extreme weights are cut.
    The server ranks the units here, not the clients' votes.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.data import Samples
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._root import draw_for_later, root_rows
from fl_lightning.defenses._verdicts import trained_slice
from fl_lightning.errors import ConfigError
from fl_lightning.models import predict
from fl_lightning.registry import Tunable


def cut_extremes(weights: Tensor, deviations: float) -> Tensor:
    """Weights no farther from their mean than some standard deviations.

    Example:
        >>> cut_extremes(torch.tensor([0.0, 0.0, 0.0, 4.0]), 1.0)
        tensor([0.0000, 0.0000, 0.0000, 2.7321])
    """
    mean, std = weights.mean(), weights.std(correction=0)
    return torch.minimum(torch.maximum(weights, mean - deviations * std), mean + deviations * std)


class FinePrune(Defense):
    """Prunes idle inputs of the classifier, cuts extreme weights of it, and trains on the server's samples, after the last round.

    Attributes:
        root_samples: how many validation samples are used.
        max_drop: accuracy on them that pruning may cost.
        extreme: standard deviations beyond which weights are cut; None: none are.
        epochs: of training afterwards; pruned units stay pruned.
        lr: of that training.
        batch_size: of that training.
    """

    name: ClassVar[str] = "fine_prune"
    cites: ClassVar[tuple[str, ...]] = ("liu2018finepruning", "wu2020mitigating")
    needs_samples: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    root_samples: int = Field(default=100, ge=1)
    max_drop: Annotated[float, Tunable(0.001, 0.1, log=True)] = Field(default=0.01, ge=0, le=1)
    extreme: float | None = Field(default=3.0, gt=0)
    epochs: Annotated[int, Tunable(0, 30, integer=True)] = Field(default=10, ge=0)
    lr: Annotated[float, Tunable(0.001, 0.3, log=True)] = Field(default=0.01, gt=0)
    batch_size: int = Field(default=32, ge=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay as they are; the samples of later are drawn."""
        return draw_for_later(self.name, updates_CD, context, state, self.root_samples)

    def finish(self, global_D: Tensor, context: ServerContext, state: State) -> Tensor:
        """The repaired model."""
        samples = need_validation(self.name, context.validation)
        samples = samples[root_rows(self.name, context, state, self.root_samples)]
        if context.layout is None or context.features is None:
            raise ConfigError("needs a model whose last layer is linear")
        weight, shape, _ = context.layout.classifier

        def accuracy(theta_D: Tensor) -> float:
            return float((predict(context.predict(theta_D, samples.x)) == samples.y).double().mean())

        active_H = context.features(global_D, samples.x).abs().mean(0)
        least, kept_H, model_D = accuracy(global_D) - self.max_drop, torch.ones_like(active_H), global_D.clone()
        for unit in active_H.argsort(stable=True).tolist():
            kept_H[unit] = 0
            candidate_D = model_D.clone()
            candidate_D[weight] = (model_D[weight].view(shape) * kept_H).flatten()
            if accuracy(candidate_D) < least - 1e-9:
                kept_H[unit] = 1
                break
            model_D = candidate_D
        if self.extreme is not None:
            model_D[weight] = cut_extremes(model_D[weight], self.extreme)
        mask_D = torch.ones_like(model_D)
        mask_D[weight] = kept_H.expand(shape).flatten()
        return self._tuned(model_D * mask_D, samples, mask_D, context)

    def _tuned(self, model_D: Tensor, samples: Samples, mask_D: Tensor, context: ServerContext) -> Tensor:
        """The model after some epochs on the samples."""
        trained, random = trained_slice(context), context.generator(self.name)
        for _ in range(self.epochs):
            order = torch.randperm(len(samples), generator=random).to(samples.y.device)
            for rows in torch.split(order, self.batch_size):
                gradient_D = context.gradient(model_D, samples[rows]) * mask_D
                model_D[trained] -= self.lr * gradient_D[trained]
        return model_D
