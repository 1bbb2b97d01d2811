"""The attack tailored to a known rule: as far along a direction as the rule still lets count.

References:
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021, section IV-A (aggregation rule known: Krum, Multi-Krum, Bulyan, trimmed mean, median).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Krum
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters, with_statistics
from fl_lightning.attacks._min_max import min_max
from fl_lightning.attacks._perturbation import KINDS, Kind, direction, half_flipped, perturbation
from fl_lightning.attacks._ray import rays
from fl_lightning.attacks._rehearsed_rule import RehearsedRule, rehearsed_rule
from fl_lightning.attacks._selection import largest_accepted, selected, selection_geometry, selects
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.defenses import State

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

Aim = Literal["distance", "backward"]

BACK, TRIES = 1e-3, 50
"""Share by which gamma shrinks where rounding makes the rule refuse it, and how often."""


class Tailored(NamedTuple):
    """A crafted strength along one direction.

    Attributes:
        gamma: the strength.
        value: how far the aggregate moves.
        found: whether the rule lets at least one copy count.
        trials: strengths tried.
        at_reach: whether a larger one might do more.
    """

    gamma: float
    value: float
    found: bool
    trials: int
    at_reach: bool = False


def displacement(aggregate_D: Tensor, mean_D: Tensor, aim: Aim) -> float:
    """How far the aggregate was moved from the honest mean: in any direction, or back along the mean.

    Args:
        aggregate_D: `[D]` A.
        mean_D: `[D]` mu.
        aim: `distance`: |A - mu|; `backward`: -(A - mu) . mu / |mu|, the distance where mu is zero.
    """
    moved_D = aggregate_D.double() - mean_D.double()
    if aim == "backward" and bool(mean_D.any()):
        return -float(moved_D @ direction(mean_D.double()))
    return float(torch.linalg.vector_norm(moved_D))


def against_selection(
    server: RehearsedRule, base_D: Tensor, direction_D: Tensor, scale: float, value: Callable[[Tensor], float]
) -> Tailored:
    """The largest gamma at which the rule selects all copies, else all but one, and so on (Krum: one of them).

    The search runs on distances; the rule itself then confirms on the rows, and gamma shrinks by a thousandth where it does not.

    Args:
        server: the rule, which must be one of those that `selects` knows.
        base_D: `[D]` where gamma = 0 lies.
        direction_D: `[D]` p.
        scale: where the search begins.
        value: of an aggregate.
    """
    geometry = selection_geometry(server, base_D, direction_D)
    most = 1 if isinstance(server.rule, Krum) else server.n_crafted
    total = 0
    for wanted in range(most, 0, -1):

        def accepts(gamma: float, wanted: int = wanted) -> bool:
            chosen = selected(server.rule, geometry.distances(gamma))  # type: ignore[arg-type]
            return int(server.crafted_C[chosen].sum()) >= wanted

        gamma, trials = largest_accepted(accepts, scale)
        total += trials
        for _ in range(TRIES):
            if gamma is None:
                break
            total += 1
            aggregate = server.aggregate(base_D + gamma * direction_D)
            if int(aggregate.kept[server.crafted_C.to(aggregate.kept.device)].sum()) >= wanted:
                return Tailored(gamma, value(aggregate.update), True, total)
            gamma *= 1 - BACK
    return Tailored(0.0, -torch.inf, False, total)


class AgrTailored(Crafted):
    """AGR-tailored: all malicious clients send mu + gamma p with the gamma that the known rule lets do most.

    Against Krum, Multi-Krum and Bulyan the largest gamma at which the copies are selected, from distances alone; against every
    other rule the gamma that moves the aggregate farthest. Defenses in front of the rule are not seen. With partial knowledge the
    rule is played on the known rows.

    Attributes:
        perturbation: direction in which the crafted update leaves the honest mean; `best`: all three, the one that moves the
            aggregate farthest.
        aim: what is maximised: `backward`, how far the aggregate is turned back, or the `distance` from the honest
            mean (the paper), which a better model may have, too.
        trials: largest number of aggregations a round against rules that do not select.
        flip_half: reverse the directions on a random half of the coordinates, drawn afresh each round.
    """

    name: ClassVar[str] = "agr_tailored"
    cites: ClassVar[tuple[str, ...]] = ("shejwalkar2021manipulating",)
    needs: ClassVar[Knowledge] = "partial"
    serves: ClassVar[tuple[str, ...]] = ("any",)

    knowledge: Knowledge = "partial"
    perturbation: Annotated[Kind | Literal["best"], Choice(("best", *KINDS))] = "best"
    aim: Annotated[Aim, Choice(("backward", "distance"))] = "backward"
    trials: Annotated[int, Tunable(30, 300, log=True, integer=True)] = Field(default=90, ge=1)
    flip_half: Annotated[bool, Choice((False, True))] = False

    def expense(self, experiment: "Experiment") -> str | None:
        """Aggregations, unless the rule selects: there distances suffice."""
        rule = experiment.aggregator
        return None if selects(rule) else f"up to {self.trials} aggregations by {rule.name} (attack.trials)"

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the strongest mu + gamma p."""
        known_HP = known_parameters(view)
        mean_P = known_HP.mean(0)
        server = rehearsed_rule(view)
        if server is None:
            return Poisoned(self.rows(view, mean_P, mean_P), metrics={"gamma": 0.0, "found": 0.0, "trials": 0.0})
        kinds = KINDS if self.perturbation == "best" else (self.perturbation,)
        directions = [perturbation(known_HP, kind) for kind in kinds]
        if self.flip_half:
            directions = [half_flipped(each_P, view.generator("half")) for each_P in directions]
        scales = [min_max(known_HP, each_P) for each_P in directions]
        kind, best = self._search(view, server, mean_P, directions, scales)
        metrics = {
            "gamma": best.gamma,
            "found": float(best.found),
            "trials": float(best.trials),
            "at_reach": float(best.at_reach),
            "direction": float(KINDS.index(kinds[kind])),
        }
        return Poisoned(self.rows(view, mean_P + best.gamma * directions[kind], mean_P), metrics=metrics)

    def _search(
        self, view: View, server: RehearsedRule, mean_P: Tensor, directions: list[Tensor], scales: list[float]
    ) -> tuple[int, Tailored]:
        """Index of the best direction, and its strength."""

        def value(aggregate_D: Tensor) -> float:
            return displacement(aggregate_D[: len(mean_P)], mean_P, self.aim)

        base_D = with_statistics(view, mean_P)
        full = [torch.cat([each_P, each_P.new_zeros(len(base_D) - len(each_P))]) for each_P in directions]
        if selects(server.rule):
            results = [
                against_selection(server, base_D, each_D, scale, value)
                for each_D, scale in zip(full, scales, strict=True)
            ]
            best = max(range(len(results)), key=lambda index: results[index].value)
            return best, results[best]._replace(trials=sum(result.trials for result in results))
        objectives = [
            lambda gamma, each_D=each_D: value(server.aggregate(base_D + gamma * each_D).update) for each_D in full
        ]
        peak = rays(objectives, scales, trials=self.trials)
        return peak.ray, Tailored(peak.gamma, peak.value, True, peak.trials, peak.at_reach)
