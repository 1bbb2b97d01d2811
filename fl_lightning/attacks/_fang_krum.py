"""Fang's attack on Krum: the farthest model against the direction of progress that Krum still selects.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    sections 3.2 and 3.3, theorem 1.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, eqs. 3-5.
"""

from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Bulyan, Krum, MultiKrum
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._fang import Fang
from fl_lightning.attacks._fang_search import Search, accepted, geometry, search_strength, upper_bound
from fl_lightning.attacks._known_rows import honest_statistics
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View


class Deviation(NamedTuple):
    """Result of a search.

    Attributes:
        strength: lambda; 0 where none was accepted.
        found: whether Krum accepted a lambda of at least the threshold.
        trials: lambdas tried.
        copies: crafted rows with which the accepted one was tested.
    """

    strength: float
    found: bool
    trials: int
    copies: int


def fang_krum(
    benign_BD: Tensor,
    direction_D: Tensor,
    radii_M: Tensor,
    n_byzantine: int,
    *,
    squared: bool = True,
    search: Search = "halving",
    threshold: float = 1e-5,
    start: float = 1.0,
) -> Deviation:
    """Lambda with full knowledge: Krum selects -lambda s among M crafted and all benign rows.

    Args:
        benign_BD: `[B, D]` updates of the benign clients, B > 0.
        direction_D: `[D]` s, of -1, 0, 1.
        radii_M: `[M]` distances of the crafted rows from the first one, whose own is 0.
        n_byzantine: f of the server's Krum, which sums over the C - f - 2 nearest others.
        squared: whether the server sums squared distances.
        search: how lambda is searched; see `search_strength`.
        threshold: smallest lambda worth trying.
        start: the share of the theorem's bound that the search starts from.

    Returns:
        The deviation; the crafted updates are -lambda s.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
        >>> fang_krum(updates, torch.ones(2), torch.zeros(3), 2, search="bisection").strength
        0.41...
    """
    g = geometry(benign_BD, direction_D)
    neighbours = max(1, len(benign_BD) + len(radii_M) - n_byzantine - 2)
    bound = start * upper_bound(g, len(radii_M), neighbours, squared=squared)
    strength, trials = search_strength(
        lambda value: accepted(g, value, radii_M, neighbours, squared=squared), bound, search, threshold
    )
    return Deviation(strength, strength > 0, trials, len(radii_M))


def fang_krum_partial(
    honest_HD: Tensor,
    direction_D: Tensor,
    radii_M: Tensor,
    *,
    squared: bool = True,
    search: Search = "halving",
    threshold: float = 1e-5,
    start: float = 1.0,
) -> Deviation:
    """Lambda with partial knowledge: Krum selects -lambda s among J crafted and the known honest rows.

    J starts at 1 and grows to M until a lambda is found. Krum is played with f = J, hence with H - 2 neighbours: from
    J = H - 1 on the crafted rows are their own neighbours and any lambda passes, which says nothing about the real server.

    Args:
        honest_HD: `[H, D]` honest updates that the attackers know.
        direction_D: `[D]` s, of -1, 0, 1.
        radii_M: `[M]` distances of the crafted rows from the first one, whose own is 0.
        squared: whether the server sums squared distances.
        search: how lambda is searched; see `search_strength`.
        threshold: smallest lambda worth trying.
        start: the share of the theorem's bound that the search starts from.

    Returns:
        The deviation; the crafted updates are -lambda s.
    """
    g = geometry(honest_HD, direction_D)
    neighbours, total = max(1, len(honest_HD) - 2), 0
    for copies in range(1, len(radii_M) + 1):
        bound, radii_J = start * upper_bound(g, copies, neighbours, squared=squared), radii_M[:copies]
        strength, trials = search_strength(
            lambda value, radii_J=radii_J: accepted(g, value, radii_J, neighbours, squared=squared),  # type: ignore[misc]
            bound,
            search,
            threshold,
        )
        total += trials
        if strength:
            return Deviation(strength, True, total, copies)
    return Deviation(0.0, False, total, len(radii_M))


def retreat(
    benign_BD: Tensor, radii_M: Tensor, n_byzantine: int, *, squared: bool = True, precision: float = 1e-3
) -> float:
    """The smallest share mu of the way from the broadcast model to the benign mean that Krum selects.

    Not in the paper, whose attack gives up where lambda = 0 is refused: the model is far from where the clients pull it. The
    accepted point that is nearest the broadcast model gives away the least progress.

    Args:
        benign_BD: `[B, D]` updates of the benign clients, B > 0.
        radii_M: `[M]` distances of the crafted rows from the first one, whose own is 0.
        n_byzantine: f of the server's Krum.
        squared: whether the server sums squared distances.
        precision: of mu.

    Returns:
        mu in (0, 1], or 0 where not even the mean is selected; the crafted updates are mu times the benign mean.
    """
    g = geometry(benign_BD, -benign_BD.mean(0))
    neighbours = max(1, len(benign_BD) + len(radii_M) - n_byzantine - 2)
    low, high = 0.0, 1.0
    if not accepted(g, high, radii_M, neighbours, squared=squared):
        return 0.0
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if accepted(g, middle, radii_M, neighbours, squared=squared) else (middle, high)
    return high


def scatter(direction_D: Tensor, n_rows: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """`[n, D]` offsets from the crafted model: 0 for the first row, uniform in a ball of radius epsilon for the others.

    Coordinates that the attack leaves alone (s = 0) stay exactly equal: tiny noise there would give random signs.
    """
    noise_MD: Tensor = torch.randn(n_rows, len(direction_D), generator=generator).to(direction_D)
    noise_MD *= direction_D != 0
    moved = max(1, int((direction_D != 0).sum()))
    radii_M = epsilon * torch.rand(n_rows, generator=generator).to(direction_D) ** (1 / moved)
    radii_M[0] = 0
    lengths_M = torch.linalg.vector_norm(noise_MD, dim=1).clamp(min=1e-30)
    noise_MD *= (radii_M / lengths_M)[:, None]
    return noise_MD


class FangKrum(Fang):
    """Fang's attack on Krum, which also reaches Multi-Krum and Bulyan: near-copies of w_Re - lambda s.

    The first malicious client sends w_Re - lambda s, the others a model within epsilon of it, and lambda is as large as Krum
    accepts. Where no lambda is accepted, the attackers retreat, or else send the broadcast model back.

    Attributes:
        search: `halving`, as Fang et al., or `bisection`, which comes closer to the largest lambda.
        threshold: smallest lambda worth trying.
        start: the share of theorem 1's bound that the search starts from; below 1 lambda is smaller, or meets other values.
        epsilon: radius of the ball in which the copies lie.
        squared: whether Krum sums squared distances; None: as the server does, squared where that is not known.
        retreat: where full knowledge shows that no lambda is accepted, send the accepted point nearest the broadcast model on
            the way to the benign mean (not in the paper; see the function `retreat`).
    """

    name: ClassVar[str] = "fang_krum"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)

    search: Annotated[Search, Choice(("halving", "bisection"))] = "halving"
    threshold: float = Field(default=1e-5, gt=0)
    start: Annotated[float, Tunable(0.1, 1)] = Field(default=1.0, gt=0, le=1)
    epsilon: Annotated[float, Tunable(1e-7, 0.1, log=True)] = Field(default=1e-3, ge=0)
    squared: bool | None = None
    retreat: Annotated[bool, Choice((True, False))] = True

    def craft(self, view: View) -> Poisoned:
        """Search lambda, then send near-copies."""
        server = self.server(view)
        squared = self.squared
        if squared is None:
            squared = server.squared if isinstance(server, Krum | MultiKrum | Bulyan) else True
        n_byzantine = view.n_malicious if server is None or server.n_byzantine is None else server.n_byzantine
        direction_D = self.direction(view)
        offsets_MD = scatter(direction_D, view.n_malicious, self.epsilon, view.generator("copies"))
        radii_M = offsets_MD.double().norm(dim=1).cpu()
        settings: dict[str, Any] = {"squared": squared, "search": self.search, "threshold": self.threshold}
        settings["start"] = self.start
        share = 0.0
        if self.sees_all(view):
            benign_BD = view.benign_updates
            result = fang_krum(benign_BD, direction_D, radii_M, n_byzantine, **settings)
            crafted_D = -result.strength * direction_D
            if self.retreat and not result.found:
                share = retreat(benign_BD, radii_M, n_byzantine, squared=squared)
                crafted_D = share * benign_BD.mean(0)
        else:
            result = fang_krum_partial(view.known_updates, direction_D, radii_M, **settings)
            crafted_D = -result.strength * direction_D
        metrics = {
            "lambda": result.strength,
            "found": float(result.found),
            "trials": float(result.trials),
            "copies": float(result.copies),
            "retreat": share,
        }
        return Poisoned(honest_statistics(view, crafted_D + offsets_MD), metrics=metrics)
