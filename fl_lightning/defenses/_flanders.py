"""FLANDERS: the matrix of the clients' models is forecast from the rounds before, and rows far from their forecast go."""

import torch
from torch import Tensor


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
    ridge_C, ridge_F = ridge * A, ridge * B
    for _ in range(iterations):
        moved = before @ B.T
        A = (after @ moved.mT).sum(0) @ torch.linalg.pinv((moved @ moved.mT).sum(0) + ridge_C, hermitian=True)
        moved = A @ before
        B = (after.mT @ moved).sum(0) @ torch.linalg.pinv((moved.mT @ moved).sum(0) + ridge_F, hermitian=True)
    return A @ last_CF @ B.T


def flanders_scores(window_TCF: Tensor, models_CF: Tensor, ridge: float = 0.1, iterations: int = 20) -> Tensor:
    """`[C]` float64, squared distances of the models sent from their forecasts.

    Args:
        window_TCF: `[T, C, F]` models of the rounds before, oldest first.
        models_CF: `[C, F]` models of this round.
        ridge: of the regressions.
        iterations: of the regressions.
    """
    return (forecast(window_TCF, ridge, iterations) - models_CF.double()).square().sum(1)
