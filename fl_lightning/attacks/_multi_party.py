"""Multi-party targeted poisoning: colluding clients that choose their boosts together, round by round.

References:
    Chen, Tian, Liao, Yu, "Towards multi-party targeted model poisoning attacks against federated learning systems",
    High-Confidence Computing 2021, sections 3.2, 4.1 and 5.1, eqs. 2-4.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from fl_lightning.aggregators import direct_distances
from fl_lightning.attacks._backdoor_training import Start, foreseen, mix, start_model
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.attacks._objectives import LabelMap, Objective
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot


def cosines(updates_MD: Tensor, weights_M: Tensor, benign_sum_D: Tensor) -> Tensor:
    """`[M]` cosine of each malicious update to the aggregate of all others, the other attackers among them.

    Args:
        updates_MD: `[M, D]` what the attackers submit, boosted.
        weights_M: `[M]` their shares p_m of all weights.
        benign_sum_D: `[D]` sum of p_n delta_n over the benign clients.
    """
    total_D = benign_sum_D + weights_M @ updates_MD
    return F.cosine_similarity(updates_MD, total_D - weights_M[:, None] * updates_MD, dim=1)


def distances(update_D: Tensor, boosts: Sequence[float], benign_VD: Tensor) -> Tensor:
    """`[G]` largest distance max_n ||lambda delta_m - delta_n|| to the benign updates, for every boost lambda.

    Args:
        update_D: `[D]` delta_m before boosting.
        boosts: G values of lambda.
        benign_VD: `[V, D]` benign updates, V > 0.
    """
    own = update_D.double()
    dots_V = torch.stack([own @ row.double() for row in benign_VD])
    norms_V = torch.stack([row.double().square().sum() for row in benign_VD])
    boosts_G = torch.tensor(boosts, dtype=own.dtype, device=own.device)[:, None]
    return (boosts_G**2 * own.square().sum() - 2 * boosts_G * dots_V + norms_V).clamp(min=0).sqrt().amax(1)


def widest_distance(updates_ND: Tensor) -> float:
    """Largest distance between two of the updates; for a single one that of two as long and at right angles."""
    if len(updates_ND) == 1:
        return float(updates_ND.double().norm()) * 2**0.5
    return float(direct_distances(updates_ND).max())


def joint_choice(
    choices: Sequence[Sequence[float]], score: Callable[[tuple[float, ...]], tuple[float, float]]
) -> tuple[float, ...]:
    """The boosts with the lowest score: the best common one, then each attacker in turn a step up or down its grid.

    Args:
        choices: ascending grid of each attacker, not empty.
        score: of one boost per attacker; compared as tuples, lower is better.

    Returns:
        One boost per attacker; no single step of one attacker lowers the score.

    Example:
        >>> joint_choice([[1.0, 2.0, 3.0]] * 2, lambda boosts: (0.0, abs(sum(boosts) - 5)))
        (3.0, 2.0)
    """
    common = sorted({boost for own in choices for boost in own})
    nearest = [tuple(min(own, key=lambda b, c=boost: abs(b - c)) for own in choices) for boost in common]  # type: ignore[misc]
    best = min(nearest, key=score)
    moved = True
    while moved:
        moved = False
        for m, own in enumerate(choices):
            at = own.index(best[m])
            for boost in (*own[max(0, at - 1) : at], *own[at + 1 : at + 2]):
                candidate = (*best[:m], boost, *best[m + 1 :])
                if score(candidate) < score(best):
                    best, moved = candidate, True
    return best


class Loot(NamedTuple):
    """The attackers' data, sorted by what it is good for.

    Attributes:
        clean: each attacker's own samples that the objective leaves alone.
        poison: D_tar, samples with the wished labels, shared by all attackers.
    """

    clean: list[Samples]
    poison: Samples


class MultiParty(Attack):
    """Colluding clients learn the wished labels beside the main task and choose together how far each boosts its update.

    Attacker m trains delta_m on its clean samples and on D_tar and submits lambda_m delta_m. The boosts minimise

        J = b F(D_tar; w') + F(D_clean; w') + p mean_m (1 - cos(lambda_m delta_m, aggregate of all others))

    over a discrete grid, subject to max_n ||lambda_m delta_m - delta_n|| <= C over the visible benign updates and, if gamma
    is given, to accuracies that pass eq. 3. w' is the global model that the attackers foresee under the mean; benign clients
    that they do not see are taken for the mean of the known honest updates.

    Corrected here: eq. 4 multiplies the target loss by lambda_m, so that the smallest boost is always the best
    (`criterion: printed` shows it); the text says that lambda amplifies the update. A weight b on the target loss is
    needed, or the clean loss always wins. Eq. 3 has the right sign for accuracies, which the text describes, not for losses.

    With one malicious client this is the paper's baseline SNAL2, and SAnoDC without `distance`.

    Attributes:
        grid: values of lambda; N / M replaces the global model.
        grid_factor: factor on all of them.
        start: where the attackers train from: the model that the benign updates alone would lead to, as eq. 4 asks for a delta
            that lowers the loss of the aggregated model; or the broadcast model, from which nothing counters the benign
            updates once the target is learnt, so that success comes and goes.
        criterion: the weighted J above, or the printed one.
        target_weight: b.
        cosine_weight: p.
        distance: C as a multiple of the largest distance between two visible benign updates; None: no bound.
        gamma: accuracy that w_G + lambda_m delta_m may lose against the aggregate of the others; None: no bound.
        clean_at: model at which the clean loss counts: the foreseen `global` one, or the mean over the `submitted` ones.
        poison_samples: size of D_tar, drawn from what the attackers know.
        poison_fraction: share of D_tar in an attacker's training data.
        epochs: local epochs of the attackers; None: as everybody.
        batch: samples on which losses and accuracies are compared.
    """

    name: ClassVar[str] = "multi_party"
    cites: ClassVar[tuple[str, ...]] = ("chen2021multiparty",)
    serves: ClassVar[tuple[str, ...]] = ("relabel", "samples", "backdoor")

    knowledge: Knowledge = "partial"
    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    grid: tuple[float, ...] = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 10)
    grid_factor: Annotated[float, Tunable(0.25, 4, log=True)] = Field(default=1.0, gt=0)
    start: Annotated[Start, Choice(("foreseen", "global"))] = "foreseen"
    criterion: Literal["weighted", "printed"] = "weighted"
    target_weight: Annotated[float, Tunable(1, 100, log=True)] = Field(default=10.0, ge=0)
    cosine_weight: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, ge=0)
    distance: Annotated[float | None, Tunable(1, 20, log=True)] = Field(default=5.0, gt=0)
    gamma: Annotated[float | None, Tunable(0.01, 0.5, log=True)] = Field(default=None, ge=0, le=1)
    clean_at: Annotated[Literal["global", "submitted"], Choice(("global", "submitted"))] = "global"
    poison_samples: int = Field(default=1048, ge=1)
    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.2, gt=0, lt=1)
    epochs: Annotated[int | None, Tunable(1, 6, integer=True)] = Field(default=None, ge=1)
    batch: int = Field(default=500, ge=1)

    @field_validator("grid")
    @classmethod
    def _positive(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not grid or min(grid) <= 0:
            raise ValueError(f"needs at least one boost, all above 0, got {grid}")
        return tuple(sorted(set(map(float, grid))))

    @property
    def boosts(self) -> tuple[float, ...]:
        """The values of lambda that are tried."""
        return tuple(self.grid_factor * boost for boost in self.grid)

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on clean and dirty samples, then choose the boosts together."""
        loot = self._loot(view)
        weights_M, benign_sum_D = foreseen(view)
        updates_MD = self._train(view, loot, benign_sum_D)
        seen_VD = yardstick(view)
        threshold = None if self.distance is None else self.distance * widest_distance(seen_VD)
        reaches_MG = [distances(update_D, self.boosts, seen_VD).tolist() for update_D in updates_MD]
        choices = [
            [b for b, r in zip(self.boosts, reach_G, strict=True) if threshold is None or r <= threshold]
            for reach_G in reaches_MG
        ]
        # An attacker that cannot keep the bound stays as close to it as its grid allows.
        choices = [
            own or [self.boosts[reach_G.index(min(reach_G))]] for own, reach_G in zip(choices, reaches_MG, strict=True)
        ]

        sample = view.generator("judged")
        clean = pick(Samples.cat(loot.clean), self.batch, sample)
        dirty = pick(loot.poison, self.batch, sample)

        @cache
        def judge(boosts: tuple[float, ...]) -> dict[str, float]:
            return self._judge(view, updates_MD, torch.tensor(boosts), weights_M, benign_sum_D, clean, dirty)

        boosts = joint_choice(choices, lambda boosts: (judge(boosts)["excess"], judge(boosts)["objective"]))
        reach = max(r[self.boosts.index(b)] for r, b in zip(reaches_MG, boosts, strict=True))
        metrics = {name: value for name, value in judge(boosts).items() if name != "excess"}
        metrics |= {"lambda": sum(boosts) / len(boosts), "lambda_max": max(boosts), "reach": reach}
        metrics["feasible"] = float((threshold is None or reach <= threshold) and not judge(boosts)["excess"])
        if threshold is not None:
            metrics["threshold"] = threshold
        factors_M1 = torch.tensor(boosts).to(updates_MD)[:, None]
        return Poisoned(scaled(updates_MD, factors_M1, view.flat.trained), metrics=metrics)

    def _loot(self, view: View) -> Loot:
        """D_tar from all that the attackers know; a sample whose label is to change is never also trained as clean."""
        draw = view.generator("targets")
        everything = view.draw(None, draw)
        dirty = view.dirty(everything)
        if not isinstance(self.objective, LabelMap):
            return Loot(view.own_samples, pick(dirty, self.poison_samples, draw))
        poison = dirty[torch.nonzero(dirty.y != everything.y).flatten()]
        clean = [
            own[torch.nonzero(changed.y == own.y).flatten()]
            for own, changed in zip(view.own_samples, view.dirty_samples, strict=True)
        ]
        return Loot(clean, pick(poison, self.poison_samples, draw))

    def _train(self, view: View, loot: Loot, benign_sum_D: Tensor) -> Tensor:
        """`[M, D]` the attackers' updates before boosting."""
        client = replace(view.client, epochs=self.epochs, steps=None) if self.epochs else view.client
        lessons = []
        for row, clean in enumerate(loot.clean):
            if not len(clean) or not len(loot.poison):
                lessons.append(Samples.cat([clean, loot.poison]))
            else:
                lessons.append(mix(clean, loot.poison, self.poison_fraction, view.generator("mix", row)))
        # Attackers that hold nothing at all of use train honestly.
        lessons = [lesson if len(lesson) else own for lesson, own in zip(lessons, view.own_samples, strict=True)]
        return view.train(lessons, client, start_D=start_model(view, self.start, benign_sum_D))

    def _judge(
        self,
        view: View,
        updates_MD: Tensor,
        boosts_M: Tensor,
        weights_M: Tensor,
        benign_sum_D: Tensor,
        clean: Samples,
        dirty: Samples,
    ) -> dict[str, float]:
        """J and its parts for one choice of boosts, and by how much it fails the accuracy check."""
        boosts_M = boosts_M.to(updates_MD)
        sent_MD = boosts_M[:, None] * updates_MD
        total_D = benign_sum_D + weights_M @ sent_MD
        after_D = view.global_D + view.server_lr * total_D
        local_MD = view.global_D + sent_MD
        judged = [after_D] if self.clean_at == "global" else list(local_MD)
        figures = {
            "cosine": float(cosines(sent_MD, weights_M, benign_sum_D).mean()),
            "target_loss": float(view.flat.losses(after_D, dirty).mean()) if len(dirty) else 0.0,
            "clean_loss": 0.0,
            "excess": 0.0,
        }
        if len(clean):
            figures["clean_loss"] = sum(float(view.flat.losses(one_D, clean).mean()) for one_D in judged) / len(judged)
        if self.criterion == "weighted":
            figures["objective"] = self.target_weight * figures["target_loss"] + figures["clean_loss"]
        else:
            figures["objective"] = float(boosts_M.mean()) * figures["target_loss"] + figures["clean_loss"]
        figures["objective"] += self.cosine_weight * (1 - figures["cosine"])
        if self.gamma is not None and len(clean) and not clean.y.is_floating_point():
            gaps = []
            for m, weight in enumerate(weights_M):
                others_D = (total_D - weight * sent_MD[m]) / max(float(1 - weight), 1e-12)
                others = view.flat.accuracy(view.global_D + others_D, clean)
                gaps.append(others - view.flat.accuracy(local_MD[m], clean))
            figures |= {"accuracy_gap": max(gaps), "excess": max(0.0, max(gaps) - self.gamma)}
        return figures


def yardstick(view: View) -> Tensor:
    """`[V, D]` updates that the malicious ones must not be far from: the visible benign ones, or the own honest ones."""
    visible_VD = view.own_updates if view.knowledge == "none" else view.visible_updates
    return visible_VD if len(visible_VD) else view.own_updates


def pick(samples: Samples, size: int, generator: torch.Generator) -> Samples:
    """At most `size` of the samples, without replacement."""
    order = torch.randperm(len(samples), generator=generator)[:size]
    return samples[order.to(samples.y.device)]
