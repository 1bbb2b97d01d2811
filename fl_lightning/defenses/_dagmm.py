"""DAGMM: an autoencoder whose code and reconstruction error follow a Gaussian mixture; improbable rows go.

References:
    Zong, Song, Min, Cheng, Lumezanu, Cho, Chen, "Deep Autoencoding Gaussian Mixture Model for Unsupervised Anomaly
    Detection", ICLR 2018, eqs. 1-7.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, section 5.1: two hidden layers, 128 units in the autoencoder, 32 in the mixture network.
"""

from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fl_lightning.defenses._spectral import Spectral, train

ENERGY, THIN = 0.1, 0.005  # lambda_1 and lambda_2 of eq. 7
RIDGE = 1e-3  # on the diagonal of the covariances, which copies of one row would make singular


class Mixture(NamedTuple):
    """Shares `[K]`, means `[K, Z]` and covariances `[K, Z, Z]` of a Gaussian mixture."""

    shares_K: Tensor
    means_KZ: Tensor
    covariances_KZZ: Tensor


def mixture(z_NZ: Tensor, membership_NK: Tensor) -> Mixture:
    """The mixture that soft memberships describe (eq. 5).

    Args:
        z_NZ: `[N, Z]` points.
        membership_NK: `[N, K]` rows that sum to 1.

    Example:
        >>> m = mixture(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> m.means_KZ.flatten().tolist(), m.shares_K[1].item()
        ([1.0, 5.0], 0.3333333432674408)
    """
    weights_K = membership_NK.sum(0).clamp(min=1e-12)
    means_KZ = membership_NK.T @ z_NZ / weights_K[:, None]
    away_NKZ = z_NZ[:, None] - means_KZ
    covariances_KZZ = torch.einsum("nk,nki,nkj->kij", membership_NK, away_NKZ, away_NKZ) / weights_K[:, None, None]
    ridge_ZZ = RIDGE * torch.eye(z_NZ.shape[1]).to(z_NZ)
    return Mixture(weights_K / len(z_NZ), means_KZ, covariances_KZZ + ridge_ZZ)


def energy(z_NZ: Tensor, m: Mixture) -> Tensor:
    """`[N]` negative log-likelihood of points under a mixture (eq. 6)."""
    choleskys_KZZ = torch.linalg.cholesky(m.covariances_KZZ)
    away_KZN = (z_NZ[:, None] - m.means_KZ).permute(1, 2, 0)
    distances_KN = torch.linalg.solve_triangular(choleskys_KZZ, away_KZN, upper=False).square().sum(1)
    halves_K = choleskys_KZZ.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = z_NZ.shape[1] / 2 * torch.log(torch.tensor(2 * torch.pi)).to(z_NZ)
    logs_KN = m.shares_K.clamp(min=1e-30).log()[:, None] - distances_KN / 2 - halves_K[:, None] - constant
    energy_N: Tensor = -logs_KN.logsumexp(0)
    return energy_N


class Compression(nn.Module):
    """Autoencoder (eqs. 1, 2) and mixture network (eq. 4).

    Args:
        n_features: F.
        hidden: units of the autoencoder's hidden layers.
        latent: dimensions of the code.
        components: K.
        estimation: units of the mixture network's hidden layers.
    """

    def __init__(self, n_features: int, hidden: int, latent: int, components: int, estimation: int):
        super().__init__()

        def dense(inputs: int, units: int, outputs: int) -> nn.Sequential:
            layers = (nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh())
            return nn.Sequential(*layers, nn.Linear(units, outputs))

        self.encoder, self.decoder = dense(n_features, hidden, latent), dense(latent, hidden, n_features)
        self.estimation = dense(latent + 2, estimation, components)

    def forward(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, Z]` code with relative distance and cosine of the reconstruction, and `[N]` squared error."""
        code_NL = self.encoder(x_NF)
        out_NF = self.decoder(code_NL)
        away_N = (x_NF - out_NF).norm(dim=1)
        relative_N = away_N / x_NF.norm(dim=1).clamp(min=1e-6)
        cosine_N = F.cosine_similarity(x_NF, out_NF, dim=1)
        return torch.cat([code_NL, relative_N[:, None], cosine_N[:, None]], dim=1), away_N.square()


def dagmm_scores(
    reference_RF: Tensor,
    received_CF: Tensor,
    *,
    hidden: int = 128,
    latent: int = 2,
    components: int = 2,
    estimation: int = 32,
    epochs: int = 200,
) -> Tensor:
    """`[C]` energy of each row under a DAGMM that was trained on the reference.

    Draws from torch's global random numbers.

    Args:
        reference_RF: `[R, F]` honest rows.
        received_CF: `[C, F]` rows to be judged.
        hidden: units of the autoencoder's hidden layers.
        latent: dimensions of the code.
        components: Gaussians.
        estimation: units of the mixture network's hidden layers.
        epochs: full-batch steps of Adam.
    """
    network = Compression(reference_RF.shape[1], hidden, latent, components, estimation).to(reference_RF.device)
    fit(network, reference_RF, epochs)
    return energies(network, reference_RF, received_CF)


def fitted(network: Compression, reference_RF: Tensor) -> tuple[Tensor, Tensor, Mixture]:
    """Points `[R, Z]`, squared errors `[R]` and mixture of the reference."""
    z_RZ, errors_R = network(reference_RF)
    return z_RZ, errors_R, mixture(z_RZ, network.estimation(z_RZ).softmax(1))


def fit(network: Compression, reference_RF: Tensor, epochs: int) -> None:
    """Train it on the reference: full-batch steps on eq. 7."""

    def loss() -> Tensor:
        z_RZ, errors_R, m = fitted(network, reference_RF)
        thin = (1 / m.covariances_KZZ.diagonal(dim1=1, dim2=2)).sum()
        return errors_R.mean() / reference_RF.shape[1] + ENERGY * energy(z_RZ, m).mean() + THIN * thin

    train(network, loss, epochs, lr=1e-3)


def energies(network: Compression, reference_RF: Tensor, received_CF: Tensor) -> Tensor:
    """`[C]` energy of each row under the mixture of the reference."""
    with torch.no_grad():
        return energy(network(received_CF)[0], fitted(network, reference_RF)[2])


class Dagmm(Spectral):
    """Removes the rows of highest energy under a deep autoencoding Gaussian mixture model of honest updates.

    Attributes:
        hidden: units of the autoencoder's hidden layers.
        latent: dimensions of the code.
        components: Gaussians.
        estimation: units of the mixture network's hidden layers.
        epochs: full-batch training steps of each fit.
    """

    name: ClassVar[str] = "dagmm"
    cites: ClassVar[tuple[str, ...]] = ("zong2018deep",)

    hidden: int = Field(default=128, ge=1)
    latent: int = Field(default=2, ge=1)
    components: int = Field(default=2, ge=1)
    estimation: int = Field(default=32, ge=1)
    epochs: int = Field(default=200, ge=1)

    def network(self, n_features: int) -> Compression:
        """Autoencoder and mixture network."""
        return Compression(n_features, self.hidden, self.latent, self.components, self.estimation)

    def fit(self, network: nn.Module, reference_RF: Tensor) -> None:
        """On eq. 7."""
        fit(cast(Compression, network), reference_RF, self.epochs)

    def anomaly(self, network: nn.Module, reference_RF: Tensor, received_CF: Tensor) -> Tensor:
        """The energy."""
        return energies(cast(Compression, network), reference_RF, received_CF)
