"""Spectral detectors: rows that do not look like what training from the same model on the server's own samples gives.

References:
    Li, Cheng, Wang, Liu, Chen, "Learning to Detect Malicious Clients for Robust Federated Learning", 2020: low-dimensional
    surrogates of model updates, a model of normal ones trained at the server.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, section 5.1: VAE and DAGMM on an auxiliary data set, the c most anomalous models are removed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_lightning.aggregators import Aggregator, Byzantine, assumed
from fl_lightning.data import Samples
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected
from fl_lightning.defenses._rejection import largest, need_validation

LIMIT = 1e6  # a feature this many times the usual size is as strange as any larger one; its square stays finite


def _descended(
    context: ServerContext,
    theta_D: Tensor,
    samples: Samples,
    random: torch.Generator,
    *,
    steps: int,
    batch_size: int,
    lr: float,
) -> Tensor:
    """`[D]` a model after some steps of SGD on random batches of the server's own samples."""
    for _ in range(steps):
        batch = torch.randint(len(samples), (batch_size,), generator=random).to(samples.y.device)
        theta_D = theta_D - lr * context.gradient(theta_D, samples[batch])
    return theta_D


def reference_updates(
    context: ServerContext, samples: Samples, columns_F: Tensor, *, count: int, steps: int, batch_size: int, lr: float
) -> Tensor:
    """What honest clients would send, as far as the server can tell: short SGD runs on random batches of its own samples.

    Args:
        context: gradients, the broadcast model, random numbers.
        samples: the server's own.
        columns_F: `[F]` the coordinates that are wanted.
        count: number of runs R.
        steps: local steps of each.
        batch_size: samples a step.
        lr: learning rate.

    Returns:
        `[R, F]` updates in the wanted coordinates.
    """
    random = context.generator("reference")
    rows = []
    for _ in range(count):
        theta_D = _descended(context, context.global_D, samples, random, steps=steps, batch_size=batch_size, lr=lr)
        rows.append((theta_D - context.global_D)[columns_F])
    return torch.stack(rows)


def models_on_the_way(
    context: ServerContext, samples: Samples, columns_F: Tensor, *, count: int, steps: int, batch_size: int, lr: float
) -> Tensor:
    """`[R, F]` the models that the server passes while it trains from the broadcast one: one run of SGD, one every `steps`.

    Args:
        context: gradients, the broadcast model, random numbers.
        samples: the server's own.
        columns_F: `[F]` the coordinates that are wanted.
        count: number of models R.
        steps: local steps from one to the next.
        batch_size: samples a step.
        lr: learning rate.
    """
    random = context.generator("reference")
    theta_D, rows = context.global_D, []
    for _ in range(count):
        theta_D = _descended(context, theta_D, samples, random, steps=steps, batch_size=batch_size, lr=lr)
        rows.append(theta_D[columns_F])
    return torch.stack(rows)


def features(reference_RF: Tensor, received_CF: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets on the scale that a network likes, as float32.

    The reference rows are first brought to the received rows' median norm: the server's samples are more or fewer than a
    client's. Then x' = (x - mean_R) / s with one s for all coordinates, the root mean square deviation of the received rows, so
    that coordinates which nobody moves stay 0.

    Args:
        reference_RF: `[R, F]` finite.
        received_CF: `[C, F]` finite.

    Returns:
        `[R, F]` and `[C, F]`, finite whatever was received.
    """
    reference_RF, received_CF = reference_RF.double(), received_CF.double()
    usual = received_CF.norm(dim=1).median() / reference_RF.norm(dim=1).median().clamp(min=1e-30)
    reference_RF = reference_RF * usual
    mean_F = reference_RF.mean(0)
    spread = (received_CF - mean_F).square().mean(1).median().sqrt().clamp(min=1e-30)
    scaled = [((rows - mean_F) / spread).clamp(-LIMIT, LIMIT).float() for rows in (reference_RF, received_CF)]
    return scaled[0], scaled[1]


def train(network: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Full-batch Adam on a loss, in place."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """The global random numbers follow from the generator inside, and are as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


class Spectral(Defense, ABC):
    """Removes the `n_byzantine` rows that a model of honest updates finds strangest; ties are broken at random.

    The printed scheme fits that model once, before the first round, to the weights of a model that the server trains
    (`pretrained`). Models move on while a federation converges, so by default it is fitted afresh in every round, to updates that
    the server makes from the current global model.

    Attributes:
        n_byzantine: number of rows removed.
        coordinates: how many coordinates, drawn afresh each round, stand for an update.
        references: number of updates that the server makes to learn from.
        steps: local steps behind each of them.
        batch_size: samples a local step.
        lr: their learning rate; only directions matter, as norms are matched to those received.
        pretrained: fit once, in the first round, to the models that the server passes in one training run of references x steps
            steps, and judge whole models by it in every round; the scale is that of those models.
    """

    n_byzantine: Byzantine
    coordinates: int = Field(default=1000, ge=2)
    references: int = Field(default=40, ge=2)
    steps: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=0.05, gt=0)
    pretrained: bool = False

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has validation samples."""
        need_validation(self.name, validation or None)

    @abstractmethod
    def network(self, n_features: int) -> nn.Module:
        """The model of honest rows with F features, not fitted yet."""

    @abstractmethod
    def fit(self, network: nn.Module, reference_RF: Tensor) -> None:
        """Train it on the features of honest rows, in place."""

    @abstractmethod
    def anomaly(self, network: nn.Module, reference_RF: Tensor, received_CF: Tensor) -> Tensor:
        """`[C]` how strange the received rows are; larger = stranger.

        Args:
            network: fitted.
            reference_RF: `[R, F]` features that it was fitted to.
            received_CF: `[C, F]` features of what is judged.
        """

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The strangest rows go."""
        samples = need_validation(self.name, context.validation)
        if self.pretrained:
            scores_C, state = self._by_first_round(updates_CD, context, samples, state)
        else:
            columns_F = self._columns(updates_CD, context)
            reference_RF = reference_updates(context, samples, columns_F, **self._runs())
            scaled = features(reference_RF, updates_CD[:, columns_F])
            with seeded(context.generator(self.name)):
                network = self.network(len(columns_F)).to(updates_CD.device)
                self.fit(network, scaled[0])
                scores_C = self.anomaly(network, *scaled)
        scores_C = scores_C.double().nan_to_num(nan=1e300, posinf=1e300)
        count = assumed(self.n_byzantine, len(updates_CD))
        verdict = detected(updates_CD, context, largest(scores_C, count, context.generator("ties")), scores_C)
        return verdict._replace(state=state if self.pretrained else {})

    def _by_first_round(
        self, updates_CD: Tensor, context: ServerContext, samples: Samples, state: State
    ) -> tuple[Tensor, State]:
        """`[C]` scores of whole models by what was fitted in the first round, and what to remember of it."""
        with seeded(context.generator(self.name)):
            known = {
                key: value.to(updates_CD.device) for key, value in (state or self._fitted(context, samples)).items()
            }
            network = self.network(len(known["columns"])).to(updates_CD.device)
            nn.utils.vector_to_parameters(known["network"], network.parameters())
            models_CF = (context.global_D + updates_CD)[:, known["columns"]].double()
            received_CF = ((models_CF - known["mean"]) / known["spread"]).clamp(-LIMIT, LIMIT).float()
            return self.anomaly(network, known["reference"], received_CF), known

    def _fitted(self, context: ServerContext, samples: Samples) -> dict[str, Tensor]:
        """The network's parameters, the rows that it was fitted to, and their scale."""
        columns_F = self._columns(context.global_D[None], context)
        rows_RF = models_on_the_way(context, samples, columns_F, **self._runs()).double()
        mean_F = rows_RF.mean(0)
        spread = (rows_RF - mean_F).square().mean().sqrt().clamp(min=1e-30)
        reference_RF = ((rows_RF - mean_F) / spread).float()
        network = self.network(len(columns_F)).to(rows_RF.device)
        self.fit(network, reference_RF)
        fitted = nn.utils.parameters_to_vector(network.parameters()).detach()
        return {"columns": columns_F, "mean": mean_F, "spread": spread, "reference": reference_RF, "network": fitted}

    def _columns(self, updates_CD: Tensor, context: ServerContext) -> Tensor:
        """`[F]` the coordinates of the round."""
        drawn = torch.randperm(updates_CD.shape[1], generator=context.generator("coordinates"))
        return drawn[: self.coordinates].to(updates_CD.device)

    def _runs(self) -> dict[str, Any]:
        """How the server trains."""
        return {"count": self.references, "steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
