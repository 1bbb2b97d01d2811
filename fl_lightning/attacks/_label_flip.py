"""Label flipping: malicious clients train honestly on dirty labels.

References:
    Biggio et al., "Poisoning attacks against support vector machines", ICML 2012; the label map 0 -> 9, y -> y - 1 is that
    of Wei et al., "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", section V.
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020: the static
    map y -> K - 1 - y.
    Shejwalkar et al., "Back to the Drawing Board", IEEE S&P 2022: dynamic label flipping.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.attacks._objectives import LabelMap, Objective, Untargeted
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Dataset, Samples, alike, chosen_rows
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.models import Loss
from fl_lightning.registry import Slot

Flip = Literal["objective", "per_client", "static", "pair", "symmetric", "dynamic", "next_best"]
DRAWN = ("pair", "symmetric")
BY_SCORE = ("dynamic", "next_best")


def shifted(labels: Tensor, shift: int | Tensor, classes: int) -> Tensor:
    """Labels y -> (y - shift) mod K; regression targets are negated.

    Example:
        >>> shifted(torch.tensor([0, 1, 5]), 1, 10)
        tensor([9, 0, 4])
    """
    return -labels if labels.is_floating_point() else (labels - shift) % classes


def by_score(scores: Tensor, labels: Tensor, flip: Literal["dynamic", "next_best"]) -> Tensor:
    """`[n]` the class with the lowest score, or the wrong one with the highest.

    Args:
        scores: `[n, K]`.
        labels: `[n]` the right classes.
        flip: which of the two; the lowest is never the right class either.

    Example:
        >>> by_score(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([1]), "next_best")
        tensor([2])
    """
    right = F.one_hot(labels, scores.shape[1]).bool()
    if flip == "dynamic":
        return scores.masked_fill(right, torch.inf).argmin(1)
    return scores.masked_fill(right, -torch.inf).argmax(1)


def chosen(n: int, share: float, independent: bool, generator: torch.Generator) -> Tensor:
    """`[n]` bool, which samples are flipped: each with a probability, or exactly the rounded share of them."""
    if independent:
        return torch.rand(n, generator=generator) < share
    return torch.randperm(n, generator=generator) < round(share * n)


class LabelFlip(Attack):
    """Malicious clients train on dirty labels.

    Attributes:
        boost: factor on the submitted update; 1 is plain data poisoning.
        flip: `objective`: all as the objective says (its default is the published map 0 -> 9, y -> y - 1). `per_client`:
            attackers that do not collude; each has a shift of its own, drawn when it first takes part and kept, while
            success is still counted for the objective. `static`: y -> K - 1 - y. `pair`: y -> y + 1 mod K. `symmetric`: a random
            other class. `dynamic`: the wrong class with the lowest score of the broadcast model, anew each round; `next_best`:
            the one with the highest. Without an objective, success is counted for the same map, or is any error.
        share: of the own samples, how many are flipped; the same ones in every round. For `pair` and `symmetric` each is flipped
            with this probability, independently.
    """

    name: ClassVar[str] = "label_flip"
    cites: ClassVar[tuple[str, ...]] = ("biggio2012poisoning",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel", "samples", "backdoor")

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    boost: Annotated[float, Tunable(1, 20, log=True)] = Field(default=1.0, ge=0)
    flip: Flip = "objective"
    share: Annotated[float, Tunable(0.1, 1)] = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _objective_of_the_flip(cls, given: Any) -> Any:
        """Count success for the map that is flipped, unless an objective says otherwise."""
        values = dict((given.kwargs or {}) if isinstance(given, ArgsKwargs) else given)
        flip = values.get("flip")
        if flip in ("static", "pair"):
            values.setdefault("objective", LabelMap(mapping=flip))
        elif flip in ("symmetric", *BY_SCORE):
            values.setdefault("objective", Untargeted())
        return ArgsKwargs((), values)

    @model_validator(mode="after")
    def _labels_to_flip(self) -> "LabelFlip":
        if self.flip == "per_client" and not isinstance(self.objective, LabelMap):
            raise ValueError(f"flip 'per_client' belongs to the objective label_map, got {self.objective.name!r}")
        if self.flip == "objective" and self.objective.kind == "any":
            raise ValueError(f"flip 'objective' needs an objective with labels, got {self.objective.name!r}")
        if self.flip != "objective" and self.objective.kind not in ("any", "relabel"):
            raise ValueError(f"flip {self.flip!r} serves any, relabel, got objective {self.objective.name!r}")
        return self

    def check(self, data: Dataset, loss: Loss) -> None:
        """Flips need classes; regression targets can only be negated."""
        if data.task == "regression" and self.flip not in ("objective", "per_client"):
            raise ConfigError(f"{self.flip!r} needs classes, got regression data", "flip")

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on the dirty samples."""
        if self.flip == "objective" and self.share == 1:
            pairs = zip(view.own_samples, view.dirty_samples, strict=True)
            updates_MD = view.train([self._beside(own, dirty) for own, dirty in pairs])
            return Poisoned(scaled(updates_MD, self.boost, view.flat.trained))
        shifts: dict[str, int] = dict(state.get("shifts", {}))
        made = view.dirty_samples if self.flip == "objective" else self._relabelled(view, shifts)
        lessons, changed = [], 0
        for client, own, dirty in zip(view.own_clients.tolist(), view.own_samples, made, strict=True):
            lessons.append(self._some(view, client, own, dirty))
            same = len(dirty) == len(own) and alike(lessons[-1].x, own.x)
            changed += int((lessons[-1].y != own.y).sum()) if same else len(dirty)
        figures = {"flipped": changed / sum(map(len, lessons))}
        updates_MD = scaled(view.train(lessons), self.boost, view.flat.trained)
        return Poisoned(updates_MD, {"shifts": shifts} if shifts else {}, figures)

    def _beside(self, own: Samples, dirty: Samples) -> Samples:
        """Where a backdoor makes only some samples dirty, they are learnt beside the clean ones."""
        some = self.objective.kind == "backdoor" and len(dirty) != len(own)
        return Samples.cat([own, dirty]) if some else dirty

    def _some(self, view: View, client: int, own: Samples, dirty: Samples) -> Samples:
        """Own samples, a share of them replaced by dirty ones; dirty ones that do not replace any come beside them."""
        draw = view.run_generator("share", client)
        mask = chosen(len(dirty), self.share, self.flip in DRAWN, draw).to(own.y.device)
        if len(dirty) != len(own):
            return Samples.cat([own, dirty[mask]])
        return Samples(chosen_rows(mask, dirty.x, own.x), torch.where(mask, dirty.y, own.y))

    def _relabelled(self, view: View, shifts: dict[str, int]) -> list[Samples]:
        """Own samples of each attacker with all labels flipped; `shifts` remembers what non-colluding attackers have drawn."""
        classes, made = view.classes, []
        for client, own in zip(view.own_clients.tolist(), view.own_samples, strict=True):
            if self.flip == "static":
                y = classes - 1 - own.y
            elif self.flip == "pair":
                y = shifted(own.y, -1, classes)
            elif self.flip == "dynamic" or self.flip == "next_best":
                y = by_score(view.flat.scores(view.global_D, own.x), own.y, self.flip)
            elif self.flip == "symmetric":
                draw = view.run_generator("flip", client)
                y = shifted(
                    own.y, 1 + torch.randint(max(1, classes - 1), own.y.shape, generator=draw).to(own.y), classes
                )
            else:
                if str(client) not in shifts:
                    draw = view.generator("shift", client)
                    shifts[str(client)] = 1 + int(torch.randint(max(1, classes - 1), (), generator=draw))
                y = shifted(own.y, shifts[str(client)], classes)
            made.append(Samples(own.x, y))
        return made
