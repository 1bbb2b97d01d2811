"""A variational autoencoder of honest updates: rows that it reconstructs badly go.

References:
    An, Cho, "Variational Autoencoder based Anomaly Detection using Reconstruction Probability", 2015, Algorithm 4.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, section 5.1: two dense layers of 500 units in encoder and decoder, 100 latent dimensions.
"""

from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_lightning.defenses._spectral import Spectral, train


class Autoencoder(nn.Module):
    """Encoder to mean and log variance of the latent code, decoder to mean and log variance of the input.

    Args:
        n_features: F.
        hidden: units of each of the two dense layers on either side.
        latent: dimensions of the code.
    """

    def __init__(self, n_features: int, hidden: int, latent: int):
        super().__init__()

        def dense(inputs: int, outputs: int) -> nn.Sequential:
            layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            return nn.Sequential(*layers, nn.Linear(hidden, 2 * outputs))

        self.encoder, self.decoder = dense(n_features, latent), dense(latent, n_features)

    def forward(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """`[N]` -log p(x | z) for one draw of z, without its constant, and `[N]` KL(q(z | x) || N(0, 1))."""
        mean_NL, log_NL = self.encoder(x_NF).chunk(2, dim=1)
        log_NL = log_NL.clamp(-10, 10)
        z_NL = mean_NL + (log_NL / 2).exp() * torch.randn_like(mean_NL)
        out_NF, spread_NF = self.decoder(z_NL).chunk(2, dim=1)
        spread_NF = spread_NF.clamp(-6, 6)
        surprise_N = ((x_NF - out_NF).square() * (-spread_NF).exp() + spread_NF).sum(1) / 2
        return surprise_N, (mean_NL.square() + log_NL.exp() - 1 - log_NL).sum(1) / 2


def vae_scores(
    reference_RF: Tensor,
    received_CF: Tensor,
    *,
    hidden: int = 500,
    latent: int = 100,
    epochs: int = 100,
    draws: int = 10,
) -> Tensor:
    """`[C]` minus the reconstruction probability of each row under a VAE that was trained on the reference.

    Draws from torch's global random numbers.

    Args:
        reference_RF: `[R, F]` honest rows.
        received_CF: `[C, F]` rows to be judged.
        hidden: units of the dense layers.
        latent: dimensions of the code.
        epochs: full-batch steps of Adam on the negative evidence lower bound.
        draws: codes drawn for each row, over which the surprise is averaged.
    """
    network = Autoencoder(reference_RF.shape[1], hidden, latent).to(reference_RF.device)
    fit(network, reference_RF, epochs)
    return surprise(network, received_CF, draws)


def fit(network: Autoencoder, reference_RF: Tensor, epochs: int) -> None:
    """Train it on the reference: full-batch steps on the negative evidence lower bound."""

    def loss() -> Tensor:
        surprise_R, divergence_R = network(reference_RF)
        total: Tensor = (surprise_R + divergence_R).mean()
        return total

    train(network, loss, epochs, lr=1e-3)


def surprise(network: Autoencoder, received_CF: Tensor, draws: int) -> Tensor:
    """`[C]` minus the reconstruction probability of each row, over so many draws of its code."""
    with torch.no_grad():
        return torch.stack([network(received_CF)[0] for _ in range(draws)]).mean(0)


class Vae(Spectral):
    """Removes the rows that a variational autoencoder of honest updates reconstructs worst.

    Attributes:
        hidden: units of each dense layer.
        latent: dimensions of the code.
        epochs: full-batch training steps of each fit.
        draws: codes drawn for each row.
    """

    name: ClassVar[str] = "vae"
    cites: ClassVar[tuple[str, ...]] = ("an2015variational",)

    hidden: int = Field(default=500, ge=1)
    latent: int = Field(default=100, ge=1)
    epochs: int = Field(default=100, ge=1)
    draws: int = Field(default=10, ge=1)

    def network(self, n_features: int) -> Autoencoder:
        """The autoencoder."""
        return Autoencoder(n_features, self.hidden, self.latent)

    def fit(self, network: nn.Module, reference_RF: Tensor) -> None:
        """On the evidence lower bound."""
        fit(cast(Autoencoder, network), reference_RF, self.epochs)

    def anomaly(self, network: nn.Module, reference_RF: Tensor, received_CF: Tensor) -> Tensor:
        """Minus the reconstruction probability."""
        return surprise(cast(Autoencoder, network), received_CF, self.draws)
