"""3DFed: backdoored models that carry indicators, by which the attackers read what the server did with them and adapt.

References:
    Li, Ye, Hu, Li, Wang, Fang, Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in Federated Learning",
    IEEE S&P 2023, sections 4 and 5.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import BackdoorTraining, boosted
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._flat_training import head_of
from fl_lightning.attacks._three_dfed_adapt import GROUP, adapt, feedback, masks
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork

CANDIDATES = 10
"""Coordinates looked at for each indicator."""

AMPLIFIED, INSTEAD_OF_ZERO = 1e5, 1e-3
LARGEST_SCALE = 5.0
CURVATURE_SAMPLES = 256


def hidden_columns(flat: FlatNetwork) -> slice:
    """Columns of the last convolution's weight, or of the last weight before the head where there is none.

    Raises:
        ConfigError: nothing but a head is trained.
    """
    head = head_of(flat)
    weights = [
        layer
        for layer in flat.layout.layers
        if layer.name in flat.trainable and len(layer.shape) > 1 and layer.name.rpartition(".")[0] != head
    ]
    if not weights:
        raise ConfigError("needs a trained layer with weights before the last, linear one")
    convolutions = [layer for layer in weights if len(layer.shape) > 2]
    return (convolutions or weights)[-1].slice


def curvature(flat: FlatNetwork, theta_D: Tensor, samples: Samples) -> Tensor:
    """`[D]` the sum of each row of the loss's Hessian: its product with a vector of ones."""
    return flat.hessian_product(theta_D, samples, torch.ones_like(theta_D))[1]


def indicators(moved_N: Tensor, curvature_N: Tensor, count: int) -> Tensor:
    """The coordinates that carry indicators: of the 10 `count` that move least, the `count` of least curvature.

    Args:
        moved_N: `[N]` |backdoored| + |benign| movement of each coordinate of a layer.
        curvature_N: `[N]` its row sum of the Hessian.
        count: how many are asked for; a layer with fewer coordinates gives all.

    Example:
        >>> indicators(torch.tensor([0.0, 9.0, 0.1]), torch.tensor([2.0, 0.0, -1.0]), 1).tolist()
        [1]
    """
    least = moved_N.argsort(stable=True)[: CANDIDATES * count]
    return least[curvature_N[least].abs().argsort(stable=True)][:count]


class Memory(NamedTuple):
    """What 3DFed's attackers remember between two attacked rounds.

    Attributes:
        round: of the last attack, -1 before the first.
        coordinates: `[R]` the coordinate of each row's indicator, backdoored rows first.
        values: `[R]` the values sent there.
        sent_decoys: how many of these rows, the last ones, were decoys.
        alphas: weight of each group's noise masks.
        decoys: how many decoys are wanted.
        blind: the server adds noise: it tells nothing any more, and nothing is adapted.
    """

    round: int
    coordinates: Tensor
    values: Tensor
    sent_decoys: int
    alphas: list[float]
    decoys: int
    blind: bool


class ThreeDfed(BackdoorTraining):
    r"""Backdoored models close to the global one, under noise masks that cancel out, with indicators and decoys.

    The attackers minimise $0.3\, L_{clean} + 0.3\, L_{dirty} + 0.4\, \lVert X - G \rVert$ (here divided by 0.6, so that the
    weights do not act as a learning rate), scale the update to the length of their honest one, at most fivefold, and hide it
    under noise in the last layer that sums to 0 in every group of five. Each row carries an indicator: one coordinate that
    nobody moves, amplified. In the next round they read there which rows were accepted, clipped or rejected, and adapt the masks
    and the number of decoys, which draw a detector's attention.

    Chosen here: decoys take the place of the last of the attackers, of whom at least one stays backdoored; a decoy is the honest
    update with one last-layer weight, in which backdoored and honest updates differ least, moved by `push` lengths of that update
    (the paper pushes it away in training); and an indicator is never larger than that length, as 1e5 times a movement that is not
    tiny would be the whole model.

    Attributes:
        pull: weight of ||X - G|| beside the loss of clean and dirty samples together, 0.4 / 0.6.
        neurons: rows of the last layer that get noise: those that the attackers move least.
        alpha_0: smallest weight of the masks' first term, and the one of the first round.
        threshold: up to this share of its value an indicator counts as lost.
        push: how far a decoy's weight is moved.
    """

    name: ClassVar[str] = "three_dfed"
    cites: ClassVar[tuple[str, ...]] = ("li20233dfed",)
    serves: ClassVar[tuple[str, ...]] = ("backdoor",)

    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.5, gt=0, lt=1)
    pull: Annotated[float, Tunable(0.01, 10, log=True)] = Field(default=0.4 / 0.6, ge=0)
    neurons: Annotated[int, Tunable(1, 9, integer=True)] = Field(default=5, ge=0)
    alpha_0: Annotated[float, Tunable(0.01, 0.9)] = Field(default=0.1, gt=0, lt=1)
    threshold: float = Field(default=1e-5, ge=0)
    push: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, ge=0)
    # what is read from the global model compares with updates from the broadcast one
    start: Literal["global"] = "global"
    rehearsal: Literal[0] = 0

    def check_model(self, flat: FlatNetwork) -> None:
        """There must be a head for the noise, and a layer before it for the indicators."""
        hidden_columns(flat)

    def poison(self, view: View, state: State) -> Poisoned:
        """Read what the server did, adapt, train, and hide."""
        last = Memory(**state) if state else None
        alphas, count, blind, figures = self._adapted(view, last)
        decoys = min(count, view.n_malicious - 1)
        honest_MD = view.own_updates
        pull = [lambda: callbacks.ProximalPull(self.pull, squared=False)] if self.pull else []
        bad_MD = self._scaled(self.trained(view, *pull), honest_MD)
        rows_MD = boosted(bad_MD, self.boost_in(view), self.max_norm, view.flat.trained)
        if self.neurons:
            rows_MD = self._masked(view, rows_MD, bad_MD, len(rows_MD) - decoys, alphas)
        for row in range(len(rows_MD) - decoys, len(rows_MD)):
            rows_MD[row] = self._decoy(view, honest_MD[row], bad_MD, honest_MD, row)
        coordinates_R = self._coordinates(view, bad_MD, honest_MD)
        values_R = self._marked(rows_MD, honest_MD, coordinates_R)
        memory = Memory(view.round, coordinates_R.cpu(), values_R.cpu(), decoys, alphas, count, blind)
        figures |= {"decoys": float(decoys), "alpha": sum(alphas) / len(alphas), "noise": float(blind)}
        return Poisoned(rows_MD, memory._asdict(), figures)

    def _adapted(self, view: View, last: Memory | None) -> tuple[list[float], int, bool, dict[str, float]]:
        """Alphas of this round's groups, decoys wanted, whether the server hides what it does; and what was read."""
        groups = -(-view.n_malicious // GROUP)
        start = [self.alpha_0] * groups
        if last is None or last.blind:
            return start, 0, last is not None, {}
        alphas, count, figures = last.alphas, last.decoys, {}
        if last.round == view.round - 1:  # else others have moved the model since
            moved_D = (view.global_D - view.previous_D).double().cpu()
            told = feedback((moved_D[last.coordinates] / last.values).tolist(), self.threshold)
            if told.noise:
                return start, 0, True, {}
            bad = len(told.fates) - last.sent_decoys
            draw = view.generator("adapt")
            alphas, count = adapt(told.fates[:bad], told.fates[bad:], alphas, count, self.alpha_0, draw)
            figures = {
                fate: told.fates.count(fate) / max(1, len(told.fates)) for fate in ("accepted", "clipped", "rejected")
            }
        return [*alphas, *start][:groups], count, False, figures

    @staticmethod
    def _scaled(bad_MD: Tensor, honest_MD: Tensor) -> Tensor:
        """Updates as long as the honest ones of the same attackers, if these are longer, and at most five times themselves."""
        lengths_M1 = bad_MD.norm(dim=1, keepdim=True).clamp(min=torch.finfo(bad_MD.dtype).tiny)
        scaled_MD: Tensor = bad_MD * (honest_MD.norm(dim=1, keepdim=True) / lengths_M1).clamp(1.0, LARGEST_SCALE)
        return scaled_MD

    def _masked(self, view: View, rows_MD: Tensor, bad_MD: Tensor, count: int, alphas: list[float]) -> Tensor:
        """The first `count` rows under noise that sums to 0 in every group."""
        head = view.flat.layout.classifier
        size_K = bad_MD[:, head.weight].mean(0).view(head.shape).norm(dim=1)
        target = self.objective.label
        if target is not None and target < len(size_K):
            size_K[target] = float("inf")
        noisy = size_K.argsort(stable=True)[: min(self.neurons, len(size_K) - 1)]
        rows_MD = rows_MD.clone()
        for group, begin in enumerate(range(0, count, GROUP)):
            members = slice(begin, min(begin + GROUP, count))
            draw = view.generator("masks", group)
            noise = masks(size_K[noisy], alphas[group], members.stop - begin, head.shape[1], draw)
            weights = rows_MD[members, head.weight].clone().view(-1, *head.shape)
            weights[:, noisy] += noise
            rows_MD[members, head.weight] = weights.flatten(1)
        return rows_MD

    def _decoy(self, view: View, own_D: Tensor, bad_MD: Tensor, honest_MD: Tensor, row: int) -> Tensor:
        """An honest update with one weight of the last layer far away; each decoy has another one."""
        columns = view.flat.layout.classifier.weight
        differ_N = (bad_MD.mean(0) - honest_MD.mean(0))[columns].abs()
        place = columns.start + int(differ_N.argsort(stable=True)[(len(bad_MD) - 1 - row) % len(differ_N)])
        decoy_D = own_D.clone()
        decoy_D[place] += self.push * own_D.norm() * (1 if own_D[place] >= 0 else -1)
        return decoy_D

    def _coordinates(self, view: View, bad_MD: Tensor, honest_MD: Tensor) -> Tensor:
        """`[R]` one coordinate a row."""
        columns, flat, theta_D = hidden_columns(view.flat), view.flat, view.global_D
        clean = Samples.cat(view.own_samples)[:CURVATURE_SAMPLES]
        curved_D = curvature(flat, theta_D, clean) + curvature(flat, theta_D, view.dirty(clean))
        moved_D = bad_MD.mean(0).abs() + honest_MD.mean(0).abs()
        found: Tensor = indicators(moved_D[columns], curved_D[columns], len(bad_MD)) + columns.start
        return found

    @staticmethod
    def _marked(rows_MD: Tensor, honest_MD: Tensor, coordinates_R: Tensor) -> Tensor:
        """Write the indicators into the rows; `[R]` the values, whose signs are those of the updates."""
        rows_R = torch.arange(len(coordinates_R), device=rows_MD.device)
        there_R = rows_MD[rows_R, coordinates_R]
        limit_R = honest_MD[rows_R].norm(dim=1).clamp(min=INSTEAD_OF_ZERO)
        amplified_R = (AMPLIFIED * there_R).clamp(-limit_R, limit_R)
        values_R = torch.where(there_R == 0, torch.full_like(there_R, INSTEAD_OF_ZERO), amplified_R)
        rows_MD[rows_R, coordinates_R] = values_R
        return values_R.double()
