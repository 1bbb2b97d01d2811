"""Attacks whose strength is searched through the server's whole reaction: defenses and rule.

References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, section 6 (the strength of ALIE and FOE, which is IPM, optimised by a line search on the
    distance between aggregate and honest mean).
"""

import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._agr_tailored import displacement
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted, sent
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._min_max import min_max
from fl_lightning.attacks._ray import Peak, rays
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.data import Samples
from fl_lightning.defenses import State

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

Harm = Literal["distance", "backward", "loss"]


class Optimal(Crafted, ABC):
    """All malicious clients send mu + gamma p with the gamma at which the server, defenses and all, does most harm.

    Every strength is tried on a replay of the server: with full knowledge the defenses, with copies of their memory, and the
    rule; with partial knowledge the rule alone, on the known rows. A server that averages without a bound has no strongest gamma:
    `attack/at_reach` is 1 there.

    Attributes:
        aim: what is maximised: the `distance` of the aggregate from the honest mean (the paper); how far it is turned `backward`
            along that mean; or the `loss` of the attackers' own clean samples at the model that follows.
        reach: farthest strength of the first scan, in units of Min-Max's.
        trials: largest number of replays a round, all signs together; a replay costs what the server's defenses and rule cost.
    """

    needs: ClassVar[Knowledge] = "partial"
    serves: ClassVar[tuple[str, ...]] = ("any",)
    cites: ClassVar[tuple[str, ...]] = ("allouah2023fixing",)

    knowledge: Knowledge = "partial"
    aim: Annotated[Harm, Choice(("distance", "backward", "loss"))] = "distance"
    reach: float = Field(default=64.0, ge=1)
    trials: Annotated[int, Tunable(20, 200, log=True, integer=True)] = Field(default=60, ge=1)

    def expense(self, experiment: "Experiment") -> str:
        """Replays of whatever reacts to the updates."""
        reacting = [experiment.aggregator.name]
        if self.knowledge == "full":
            reacting = [defense.name for defense in experiment.defenses.values() if not defense.at_clients] + reacting
        return f"up to {self.trials} replays of {', '.join(reacting)} (attack.trials)"

    @abstractmethod
    def directions(self, known_HP: Tensor) -> list[Tensor]:
        """The directions `[P]` that are searched."""

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the strongest mu + gamma p."""
        known_HP = known_parameters(view)
        mean_P = known_HP.mean(0)
        directions = self.directions(known_HP)
        peak = self._search(view, known_HP, directions)
        metrics = {
            "gamma": peak.gamma,
            "direction": float(peak.ray),
            "trials": float(peak.trials),
            "at_reach": float(peak.at_reach),
        }
        return Poisoned(self.rows(view, mean_P + peak.gamma * directions[peak.ray], mean_P), metrics=metrics)

    def _search(self, view: View, known_HP: Tensor, directions: list[Tensor]) -> Peak:
        """The strongest gamma of all directions, by replays of exact copies."""
        mean_P = known_HP.mean(0)
        own = Samples.cat(view.own_samples) if self.aim == "loss" else None

        def harm(direction_P: Tensor, gamma: float) -> float:
            with warnings.catch_warnings():  # of what did not happen
                warnings.simplefilter("ignore")
                update_D = view.replay(sent(view, mean_P + gamma * direction_P, mean_P)).update
            if own is not None:
                model_D = view.global_D + view.server_lr * update_D.to(view.global_D)
                return float(view.flat.losses(model_D, own).double().mean())
            return displacement(update_D[: len(mean_P)], mean_P, "distance" if self.aim == "distance" else "backward")

        objectives = [lambda gamma, each_P=each_P: harm(each_P, gamma) for each_P in directions]
        scales = [min_max(known_HP, each_P) for each_P in directions]
        return rays(objectives, scales, reach=self.reach, trials=self.trials)
