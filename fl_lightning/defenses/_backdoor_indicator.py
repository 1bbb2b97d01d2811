"""BackdoorIndicator: the server plants a watermark of meaningless inputs; only a backdoored update keeps it alive.

References:
    Li, Dai, "BackdoorIndicator: Leveraging OOD Data for Proactive Backdoor Detection in Federated Learning", USENIX Security
    2024, algorithm 1. The inputs are noise here in place of another data set.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.data import Samples, random_inputs
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._verdicts import filtered, trained_slice
from fl_lightning.errors import ConfigError
from fl_lightning.models import predict
from fl_lightning.registry import Tunable


def label_accuracies(predicted_n: Tensor, labels_n: Tensor, classes: int) -> Tensor:
    """`[K]` float64, share of the samples of each label that are classified so; 0 for a label without samples.

    Example:
        >>> label_accuracies(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        tensor([0.5000, 1.0000, 0.0000], dtype=torch.float64)
    """
    totals_K = torch.bincount(labels_n.cpu(), minlength=classes)
    hits_K = torch.bincount(labels_n[predicted_n == labels_n].cpu(), minlength=classes)
    return hits_K.double() / totals_K.clamp(min=1)


class BackdoorIndicator(Defense):
    """Trains the model on noise with random labels before it is sent, and removes rows under which a label survives.

    The clients start from the watermarked model, so that it changes honest training, too.

    Attributes:
        samples: inputs, with balanced random labels; drawn afresh each round.
        lr: of the server's steps.
        mu: pull towards the model before.
        epochs: at most; it stops when `bound` of the inputs are learnt.
        batch_size: of the server's steps.
        bound: accuracy on the inputs of a label above which a row goes.
        start: first round with a watermark.
    """

    name: ClassVar[str] = "backdoor_indicator"
    cites: ClassVar[tuple[str, ...]] = ("li2024backdoorindicator",)
    needs_samples: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True

    samples: int = Field(default=800, ge=1)
    lr: float = Field(default=0.005, gt=0)
    mu: float = Field(default=0.1, ge=0)
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=1)
    bound: Annotated[float, Tunable(0.5, 0.99)] = Field(default=0.95, gt=0, lt=1)
    start: int = Field(default=0, ge=0)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples: the noise has their shape and range."""
        need_validation(self.name, validation or None)

    def watermark(self, context: ServerContext) -> Samples:
        """The inputs and labels of a round."""
        known = need_validation(self.name, context.validation)
        if context.layout is None:
            raise ConfigError("needs a model whose layers are known")
        if context.rounds is not None and self.start >= context.rounds:
            raise ConfigError(f"must be less than rounds = {context.rounds}, got {self.start}", "start")
        classes, random = context.layout.classifier.shape[0], context.generator(self.name)
        inputs = random_inputs(known.x, self.samples, random, spread=True)
        labels = (torch.randperm(self.samples, generator=random) % classes).to(known.y)
        return Samples(inputs, labels)

    def broadcast(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The model after steps on the watermark; running statistics stay those of the model before."""
        marks = self.watermark(context)
        if context.round < self.start:
            return global_D, state
        trained, random, model_D = trained_slice(context), context.generator("watermark batches"), global_D.clone()
        for _ in range(self.epochs):
            order = torch.randperm(len(marks), generator=random).to(marks.y.device)
            for rows in torch.split(order, self.batch_size):
                gradient_D = context.gradient(model_D, marks[rows])[trained]
                model_D[trained] -= self.lr * (gradient_D + self.mu * (model_D[trained] - global_D[trained]))
            if float((predict(context.predict(model_D, marks.x)) == marks.y).double().mean()) > self.bound:
                break
        return model_D, state

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows under which the best label is known better than the bound go; that accuracy is the score."""
        marks = self.watermark(context)
        if context.round < self.start:
            return filtered(updates_CD, context, None)
        classes = int(marks.y.max()) + 1
        best_C = torch.stack(
            [
                label_accuracies(predict(context.predict(context.global_D + row_D, marks.x)), marks.y, classes).max()
                for row_D in updates_CD
            ]
        )
        learnt = label_accuracies(predict(context.predict(context.global_D, marks.x)), marks.y, classes)
        metrics = {"learnt": float(learnt.mean())}
        return filtered(updates_CD, context, best_C <= self.bound, scores_C=best_C, metrics=metrics)
