"""FLANDERS: the matrix of the clients' models is forecast from the rounds before, and rows far from their forecast go.

References:
    Gabrielli, Belli, Matrullo, Miori, Tolomei, "Protecting Federated Learning from Extreme Model Poisoning Attacks via
    Multidimensional Time Series Anomaly Detection", arXiv 2303.16668, 2023, section 4.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Byzantine, assumed
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, clients_of, geometry_of, population_of
from fl_lightning.defenses._verdicts import filtered, trained_model
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


def forecast(window_TCF: Tensor, ridge: float = 0.1, iterations: int = 20) -> Tensor:
    """`[C, F]` float64, A Z_T B^T: a matrix autoregression fitted to the window by alternating ridge regressions.

    A = (sum Z_t B Z_(t-1)^T) (sum Z_(t-1) B^T B Z_(t-1)^T + ridge I)^+ and likewise B, from A = B = I, on the window divided by
    its largest absolute value.

    Args:
        window_TCF: `[T, C, F]` matrices, oldest first; with fewer than two the forecast is the last one.
        ridge: >= 0.
        iterations: of both regressions.
    """
    window_TCF = window_TCF.double()
    last_CF = window_TCF[-1]
    scale = float(window_TCF.abs().max())
    if len(window_TCF) < 2 or scale == 0:
        return last_CF
    before, after = window_TCF[:-1] / scale, window_TCF[1:] / scale
    A = torch.eye(last_CF.shape[0]).to(last_CF)
    B = torch.eye(last_CF.shape[1]).to(last_CF)
    for _ in range(iterations):
        moved = before @ B.T
        A = ridge_regression(moved.transpose(1, 2).flatten(0, 1), after.transpose(1, 2).flatten(0, 1), ridge)
        B = ridge_regression((A @ before).flatten(0, 1), after.flatten(0, 1), ridge)
    return A @ last_CF @ B.T


def ridge_regression(inputs_NP: Tensor, targets_NQ: Tensor, ridge: float) -> Tensor:
    """`[Q, P]` W with least |targets - inputs W^T|^2 + ridge |W|^2, from the smaller of the two systems of equations."""
    n, p = inputs_NP.shape
    products = inputs_NP @ inputs_NP.T if n < p else inputs_NP.T @ inputs_NP
    inverse = torch.linalg.pinv(products + ridge * torch.eye(len(products)).to(products), hermitian=True)
    weights_QP: Tensor = targets_NQ.T @ inverse @ inputs_NP if n < p else targets_NQ.T @ inputs_NP @ inverse
    return weights_QP


def flanders_scores(window_TCF: Tensor, models_CF: Tensor, ridge: float = 0.1, iterations: int = 20) -> Tensor:
    """`[C]` float64, squared distances of the models sent from their forecasts.

    Args:
        window_TCF: `[T, C, F]` models of the rounds before, oldest first.
        models_CF: `[C, F]` models of this round.
        ridge: of the regressions.
        iterations: of the regressions.
    """
    return (forecast(window_TCF, ridge, iterations) - models_CF.double()).square().sum(1)


class Flanders(Defense):
    """Removes the rows farthest from what a matrix autoregression of the rounds before forecasts.

    Nothing is judged before the third round. Gross noise is seen; an attacker who drifts steadily is predictable and stays.

    Attributes:
        n_byzantine: how many rows go.
        columns: how many coordinates are forecast, drawn once.
        window: rounds that the forecast is fitted to.
        ridge: of the regressions, for values up to 1; the ranking depends on it.
        iterations: of the two alternating regressions.
        max_memory: limit of the memory in GiB.
    """

    name: ClassVar[str] = "flanders"
    cites: ClassVar[tuple[str, ...]] = ("gabrielli2023protecting",)
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    n_byzantine: Byzantine
    columns: int = Field(default=500, ge=1)
    window: Annotated[int, Tunable(2, 10, integer=True)] = Field(default=5, ge=2)
    ridge: Annotated[float, Tunable(0.01, 10, log=True)] = Field(default=0.1, ge=0)
    iterations: int = Field(default=20, ge=1)
    max_memory: float = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The rows farthest from their forecast go, at most all but one; a client that was away had the global model."""
        theta_D, clients_C = trained_model(context), clients_of(updates_CD, context)
        columns_F: Tensor = state.get("columns", torch.empty(0)).cpu()
        if not len(columns_F):
            columns_F = torch.randperm(len(theta_D), generator=context.generator(self.name))[: self.columns]
        population = population_of(updates_CD, context)
        size = population * self.window * len(columns_F) * 8 / 2**30
        if size > self.max_memory:
            raise ConfigError(
                f"a window of {self.window} rounds x {population} clients x {len(columns_F)} values takes "
                f"{size:.3g} GiB, more than max_memory {self.max_memory:g}",
                "max_memory",
            )
        theta_F = theta_D[columns_F.to(theta_D.device)].double().cpu()
        models_CF = theta_F + geometry_of(updates_CD, context).trained.columns(columns_F)
        window_TNF = state["window"].cpu() if "window" in state else theta_F.new_empty(0, population, len(theta_F))
        now_NF = theta_F.repeat(population, 1)
        now_NF[clients_C] = models_CF
        remembered = {"columns": columns_F, "window": torch.cat([window_TNF, now_NF[None]])[-self.window :]}
        if len(window_TNF) < 2:
            return filtered(updates_CD, context, None, state=remembered)
        scores_C = flanders_scores(window_TNF[:, clients_C], models_CF, self.ridge, self.iterations)
        order = scores_C.sort(stable=True).indices
        keep_C = torch.zeros(len(updates_CD), dtype=torch.bool)
        keep_C[order[: max(1, len(order) - assumed(self.n_byzantine, len(order)))]] = True
        return filtered(updates_CD, context, keep_C, scores_C=scores_C, state=remembered)
