r"""Snowball: every row votes for those it is grouped with, the few most voted for are elected and then pick who is like them.

From the bottom: for every layer $l$ and every row $i$, k-means of the rows, begun at $x_{il}$ and the `far` rows farthest from
it; the Calinski-Harabasz index of the groups, scaled to [0, 1] over the rows, is the weight of $i$'s vote for the members of its
group. The `start` share with most votes is elected. From the top: a variational autoencoder learns the differences among the
elected; those whose differences to the elected it reconstructs best join, `step` of all rows at a time, until `share` is elected.

References:
    Qin, Chen, Zhi, Yan, Deng, "Resisting Backdoor Attacks in Federated Learning via Bidirectional Elections and Individual
    Perspective", AAAI 2024, algorithms 1 and 2. K-means of the differences x_il - x_jl over j is k-means of the rows themselves,
    which is what is done here, in the coordinates of their distances. The elections of the first rounds end, in the authors'
    program, after the first part (25 rounds for MNIST, 100 for CIFAR-10): `warmup`.
"""

from math import ceil
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot, softplus

from fl_lightning.aggregators import Layout, direct_distances
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, trained_of
from fl_lightning.defenses._clusters import TOO_FEW
from fl_lightning.defenses._rflbat import principal_components
from fl_lightning.defenses._spectral import seeded
from fl_lightning.defenses._spread import count
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable

STEPS = 100  # most turns of k-means
BATCH = 8  # differences in a step of the autoencoder
EQUAL_INDEX = 1e-9  # indices that differ by less are of the same groups: rounding must not become a weight


def groups_from(points_CF: Tensor, starts_Vk: Tensor) -> Tensor:
    """`[V, C]` int64 groups of k-means that is begun at the given rows, V times over; an empty group keeps its centre.

    Args:
        points_CF: `[C, F]`.
        starts_Vk: `[V, k]` int64, numbers of rows.

    Example:
        >>> groups_from(torch.tensor([[0.0], [1.0], [9.0], [8.0]]), torch.tensor([[0, 2]])).tolist()
        [[0, 0, 1, 1]]
    """
    centres_VkF = points_CF[starts_Vk]
    labels_VC = torch.full((len(starts_Vk), len(points_CF)), -1)
    for _ in range(STEPS):
        apart_VCk = torch.cdist(points_CF[None], centres_VkF, compute_mode="donot_use_mm_for_euclid_dist")
        nearest_VC = apart_VCk.argmin(2)
        if torch.equal(nearest_VC, labels_VC):
            break
        labels_VC = nearest_VC
        member_VCk = one_hot(labels_VC, starts_Vk.shape[1]).to(points_CF)
        sizes_Vk1 = member_VCk.sum(1)[:, :, None]
        centres_VkF = torch.where(sizes_Vk1 > 0, member_VCk.mT @ points_CF / sizes_Vk1.clamp(min=1), centres_VkF)
    return labels_VC


def calinski_harabasz(points_CF: Tensor, labels_C: Tensor) -> float:
    r"""How well groups are separated: $\frac{B / (k - 1)}{W / (C - k)}$; 0 for one group or as many as rows.

    Args:
        points_CF: `[C, F]`.
        labels_C: `[C]` int64.

    Returns:
        B squared distances of the groups' means from the mean, W of the rows from their group's; 1 where W is 0.

    Example:
        >>> calinski_harabasz(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        50.0
    """
    names, labels_C = labels_C.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    k, n = len(names), len(points_CF)
    if not 1 < k < n:
        return 0.0
    member_Ck = one_hot(labels_C, k).to(points_CF)
    means_kF = member_Ck.mT @ points_CF / member_Ck.sum(0)[:, None]
    between = float((member_Ck.sum(0)[:, None] * (means_kF - points_CF.mean(0)).square()).sum())
    within = float((points_CF - means_kF[labels_C]).square().sum())
    return 1.0 if within == 0 else between * (n - k) / (within * (k - 1))


def votes(layers_LCC: list[Tensor], far: int) -> Tensor:
    """`[C]` float64, what every row gets from the bottom-up election.

    Args:
        layers_LCC: squared distances `[C, C]` of the rows in each layer.
        far: rows from which groups are begun beside the voter.
    """
    n_rows = len(layers_LCC[0])
    got_C = torch.zeros(n_rows, dtype=torch.float64)
    for squared_CC in layers_LCC:
        points_CF = principal_components(squared_CC, n_rows)
        others_CC = squared_CC.double().cpu().clone().fill_diagonal_(-1)  # copies of the voter come before no other
        farthest_Ck = others_CC.sort(dim=1, descending=True, stable=True).indices[:, :far]
        labels_CC = groups_from(points_CF, torch.cat([torch.arange(n_rows)[:, None], farthest_Ck], dim=1))
        index_C = torch.tensor([calinski_harabasz(points_CF, labels_C) for labels_C in labels_CC], dtype=torch.float64)
        low, high = index_C.min(), index_C.max()
        differ = high - low > EQUAL_INDEX * high
        weight_C = (index_C - low) / (high - low) if differ else torch.ones_like(index_C)
        got_C += weight_C @ (labels_CC == labels_CC.diagonal()[:, None]).double()
    return got_C


class DifferencesAutoencoder(nn.Module):
    """Variational autoencoder of differences, squeezed to (0, 1): two dense layers on either side."""

    def __init__(self, width: int, hidden: int, latent: int):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.mean, self.spread = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, x_NF: Tensor, noise_NL: Tensor) -> tuple[Tensor, Tensor]:
        """`[N]` squared errors for one draw of the code, and `[N]` KL(q(z | x) || N(0, 1))."""
        hidden = self.encoder(x_NF)
        mean_NL, log_NL = self.mean(hidden), softplus(self.spread(hidden))
        code_NL = mean_NL + (log_NL / 2).exp() * noise_NL
        errors_N = mse_loss(self.decoder(code_NL).sigmoid(), x_NF, reduction="none").sum(1)
        return errors_N, (mean_NL.square() + log_NL.exp() - 1 - log_NL).sum(1) / 2


def differences(first_PF: Tensor, second_QF: Tensor) -> Tensor:
    """`[P Q, F]` sigmoid(a - b) for every pair."""
    return (first_PF[:, None] - second_QF).flatten(0, 1).sigmoid()


def _learn(network: DifferencesAutoencoder, examples_NF: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(epochs):
        for batch in torch.randperm(len(examples_NF)).split(BATCH):  # type: ignore[no-untyped-call]
            noise_NL = torch.randn(len(batch), network.latent).to(examples_NF)
            errors_N, divergence_N = network(examples_NF[batch], noise_NL)
            optimizer.zero_grad()
            (errors_N.sum() + divergence_N.mean()).backward()
            optimizer.step()


@torch.no_grad()
def _strangeness(network: DifferencesAutoencoder, row_F: Tensor, elected_EF: Tensor, noise: Tensor) -> float:
    """Mean error of a row's differences to the elected, both ways, over draws `[S, 2 E, L]` of the code."""
    pairs = torch.cat([differences(elected_EF, row_F[None]), differences(row_F[None], elected_EF)])
    return sum(float(network(pairs, noise_NL)[0].mean()) for noise_NL in noise) / len(noise)


def joined(
    rows_CF: Tensor,
    elected: list[int],
    *,
    wanted: int,
    step: int,
    hidden: int,
    latent: int,
    epochs: int,
    epochs_more: int,
    draws: int = 10,
) -> list[int]:
    """The elected and who joins them in the top-down election, in the order in which they joined.

    Draws from torch's global random numbers.

    Args:
        rows_CF: `[C, F]` the rows in the layers that are looked at.
        elected: numbers of the rows elected from the bottom, at least two.
        wanted: how many are elected in the end.
        step: how many join at a time.
        hidden: units of the dense layers.
        latent: dimensions of the code.
        epochs: of the first training.
        epochs_more: of the training before each step.
        draws: codes drawn for each difference.
    """
    elected = list(elected)
    network = DifferencesAutoencoder(rows_CF.shape[1], hidden, latent).to(rows_CF)
    left = epochs
    while len(elected) < wanted:
        among = differences(rows_CF[elected], rows_CF[elected])
        apart = ~torch.eye(len(elected), dtype=torch.bool).flatten()
        _learn(network, among[apart], left + epochs_more)
        left = 0
        rest = [row for row in range(len(rows_CF)) if row not in elected]
        # The same for all: who is judged first is no matter
        noise = torch.randn(draws, 2 * len(elected), latent).to(rows_CF)
        errors = [_strangeness(network, rows_CF[row], rows_CF[elected], noise) for row in rest]
        order = torch.tensor(errors).sort(stable=True).indices[: min(step, wanted - len(elected))]
        elected += [rest[place] for place in order.tolist()]
    return elected


class Snowball(Defense):
    """Elects a few rows by the votes of all, then lets them pick those that differ from them as they do among themselves.

    Never more than `share` of the rows stay, also without an attack. Votes weigh by how clear-cut the voter's groups are:
    attackers who stand close together and far from all others elect themselves. The costliest filter: a k-means for every row and
    layer, and an autoencoder trained in every round.

    Measured on digits (softmax regression, 10 clients of which 2 are malicious, 6 rounds, one seed): a boosted backdoor falls
    from 0.97 to 0.00 and sign flip x3 costs nothing; a backdoor that is not boosted rises from 0.40 to 0.93, because its two
    attackers elect each other in five rounds of six; 0.38 to 0.62 of the honest rows are dropped.

    Attributes:
        layers: tensors that are looked at: of the first and the last layer (as the authors do), or all.
        far: rows farthest from a voter, from which its groups are begun; null: a fifth of the rows (10 of the paper's 50).
        start: share that is elected from the bottom, at least two rows.
        step: share that joins at a time.
        share: share that stays.
        form: `full`, or `minus`: the first part only.
        warmup: rounds in which only the first part is done.
        hidden: units of the autoencoder's dense layers.
        latent: dimensions of its code.
        epochs: of its first training in a round.
        epochs_more: of its training before each step.
        max_rows: limit of the rows of a round; the work grows with their square.
    """

    name: ClassVar[str] = "snowball"
    cites: ClassVar[tuple[str, ...]] = ("qin2024snowball",)

    layers: Literal["ends", "all"] = "ends"
    far: int | None = Field(default=None, ge=1)
    start: float = Field(default=0.1, gt=0, le=1)
    step: float = Field(default=0.05, gt=0, le=1)
    share: Annotated[float, Tunable(0.2, 0.9)] = Field(default=0.5, gt=0, le=1)
    form: Literal["full", "minus"] = "full"
    warmup: int = Field(default=0, ge=0)
    hidden: int = Field(default=256, ge=1)
    latent: int = Field(default=64, ge=1)
    epochs: int = Field(default=270, ge=1)
    epochs_more: int = Field(default=30, ge=0)
    max_rows: int = Field(default=200, ge=4)

    def check_rows(self, n_clients: int) -> None:
        """Refuse more rows than a minute's work."""
        if n_clients > self.max_rows:
            raise ConfigError(f"needs C <= max_rows, got C={n_clients}, max_rows={self.max_rows}", "max_rows")

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Who is not elected goes; fewer than four rows all stay. The score is minus the votes."""
        n_rows = len(updates_CD)
        self.check_rows(n_rows)
        if n_rows < TOO_FEW:
            return filtered(updates_CD, context, torch.ones(n_rows, dtype=torch.bool))
        trained_CD = trained_of(updates_CD, context)
        parts = self._parts(trained_CD.shape[1], context.layout)
        squared = [_squared(trained_CD[:, part]) for part in parts]
        far = min(count(0.2, n_rows) if self.far is None else self.far, n_rows - 2)
        got_C = votes(squared, far)
        first = max(2, ceil(self.start * n_rows - 1e-9))
        central_C = torch.stack(squared).sum((0, 1))  # who stands nearest to the others goes first among equals
        order = sorted(range(n_rows), key=lambda row: (-round(float(got_C[row]), 9), float(central_C[row])))
        elected = order[:first]
        if self.form == "full" and context.round >= self.warmup:
            with seeded(context.generator(self.name)):
                elected = joined(
                    torch.cat([trained_CD[:, part] for part in parts], dim=1).float(),
                    elected,
                    wanted=max(first, count(self.share, n_rows)),
                    step=ceil(self.step * n_rows - 1e-9),
                    hidden=self.hidden,
                    latent=self.latent,
                    epochs=self.epochs,
                    epochs_more=self.epochs_more,
                )
        keep_C = torch.zeros(n_rows, dtype=torch.bool)
        keep_C[elected] = True
        return filtered(updates_CD, context, keep_C, scores_C=-got_C, metrics={"first": float(first)})

    def _parts(self, width: int, layout: Layout | None) -> list[slice]:
        """Columns of the tensors that are looked at."""
        tensors = [] if layout is None else [layer for layer in layout.layers if layer.trained]
        if not tensors:
            return [slice(0, width)]
        modules = list(dict.fromkeys(layer.name.rpartition(".")[0] for layer in tensors))
        looked = modules if self.layers == "all" else {modules[0], modules[-1]}
        return [layer.slice for layer in tensors if layer.name.rpartition(".")[0] in looked]


def _squared(rows_CF: Tensor) -> Tensor:
    """`[C, C]` float64 squared distances of the rows in a layer."""
    return direct_distances(rows_CF).square()
