"""Covert model poisoning (CMP): crafted models that the server's own rule adopts.

References:
    Wei, Li, Ding, Ma, Jeon, Poor, "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization",
    2021: Theorem 1 (mean), Algorithm 1 and Theorem 2 (Krum), Algorithm 2 (unknown rule).
"""

from collections.abc import Callable
from itertools import count
from math import isfinite
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators import Bulyan, Krum, Mean, MultiKrum
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._cmp_blind import adopted, next_step
from fl_lightning.attacks._cmp_krum import Rehearsal, constrained_descent, shrink_until, toward
from fl_lightning.attacks._cmp_mean import estimated_benign_sum, replacement
from fl_lightning.attacks._known_rows import honest_statistics
from fl_lightning.attacks._objectives import Goal, LabelMap, Objective, Untargeted
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.clients import Client, Sgd
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot

KrumLike = Krum | MultiKrum | Bulyan

HALFWAY = 0.5
"""Share of the crafted move: a benign row that Krum adopts instead ends farther from the crafted model."""

WIDEST = 0.3
"""Largest margin: at the benign mean the crafted score is about 0.7 of the lowest benign one, so that more leaves nothing."""

NARROWEST = -0.5
"""Smallest margin: a crafted row may look half as bad again as the best guessed one."""


class Cmp(Attack):
    """Covert model poisoning: all malicious clients submit one crafted model that the server's rule lets through.

    Known mean: the closed form that makes the aggregate the designated model, which the attackers train once on dirty data.
    Known Krum (also inside Multi-Krum and Bulyan): descend the attackers' loss while the rehearsed rule selects the crafted
    model, surrounded by copies at distance `eps`. No knowledge, or another rule: a step from the global model whose size
    follows what the server adopted. An untargeted attack ascends the honest loss; its designated model is that of the
    shifted labels.

    Attributes:
        clean_share: share of clean samples for `target_samples` and `trigger`, whose dirty ones say nothing of the main task.
        batch: known samples in one gradient, drawn afresh for each.
        eps: distance of the copies from the crafted model.
        designated_epochs: epochs that the designated model is trained for.
        designated_lr: its learning rate.
        designated_batch_size: its batch size.
        constraint: `original`: rehearse Krum itself; `simplified`: eq. 13 solved by sorting.
        start: the mean of the (estimated) benign models; the global model as printed, often infeasible; or Theorem 2.
        proxies: with partial knowledge, take each unseen benign client for a `repeat` of a known one, or rehearse a federation
            `scaled` down to the known clients.
        margin: share of the lowest benign score by which the constraint is tightened, in the first round where it is fed back;
            None: 0 where the rehearsal is exact, 0.05 for the simplified constraint, 0.03 for guessed benign clients. One
            rejected round is dear: the honest clients recover together, which draws Krum to them in the next ones, too.
        relax: with partial knowledge, factor on a positive margin after a round in which the server adopted the crafted
            model.
        loosen: with partial knowledge, subtracted from the margin after such a round. The margin may become negative: guessed
            benign clients can look better than the real ones, so that without it an attacker stays timid who is selected in every
            round. With it about a share loosen / (loosen + tighten) of the rounds is refused.
        tighten: with partial knowledge, added to the margin after a round in which it did not. The paper feeds back without
            knowledge only; the broadcast models, from which it is seen, are known here as well.
        eta: first step size against Krum.
        decay: factor on it after a rejected step.
        stop: share of `eta` below which the descent ends.
        cap: largest number of steps tried in a round.
        feedback: `printed`: the step is a multiple of the gradient, and grows and shrinks by the same factor; `calm`: its
            length is a multiple of the honest updates', kept within `reach`, and a miss undoes `caution` growths. The text
            asks for growth after success and shrinking after failure, not for equal factors.
        blind_eta: first step size with no knowledge; one too small to be seen in the aggregate of a rule that mixes clients only
            shrinks.
        growth: factor on it after a round in which the server adopted the crafted model.
        caution: growths undone by a round in which it did not, for `calm`.
        closeness: how near the broadcast model must be to count as adopted, relative to the crafted step.
        reach: smallest and largest step size for `calm`.
    """

    name: ClassVar[str] = "cmp"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    clean_share: Annotated[float, Tunable(0.1, 0.9)] = Field(default=0.5, ge=0, lt=1)
    batch: int = Field(default=1000, ge=1)
    eps: Annotated[float, Tunable(1e-5, 1e-1, log=True)] = Field(default=1e-3, ge=0)

    designated_epochs: Annotated[int, Tunable(1, 10, integer=True)] = Field(default=3, ge=1)
    designated_lr: Annotated[float, Tunable(1e-3, 0.5, log=True)] = Field(default=0.1, gt=0)
    designated_batch_size: int = Field(default=64, ge=1)

    constraint: Annotated[Literal["original", "simplified"], Choice(("original", "simplified"))] = "original"
    start: Annotated[Literal["centroid", "global", "theorem2"], Choice(("centroid", "global", "theorem2"))] = "centroid"
    proxies: Annotated[Literal["repeat", "scaled"], Choice(("repeat", "scaled"))] = "repeat"
    margin: Annotated[float | None, Tunable(0, 0.2)] = Field(default=None, ge=0, lt=1)
    relax: Annotated[float, Tunable(0.9, 1)] = Field(default=0.97, gt=0, le=1)
    loosen: Annotated[float, Tunable(0, 0.05)] = Field(default=0.005, ge=0, lt=1)
    tighten: Annotated[float, Tunable(0, 0.1)] = Field(default=0.05, ge=0, lt=1)
    eta: Annotated[float, Tunable(0.05, 5, log=True)] = Field(default=1.0, gt=0)
    decay: Annotated[float, Tunable(0.2, 0.9)] = Field(default=0.5, gt=0, lt=1)
    stop: float = Field(default=1 / 256, gt=0, lt=1)
    cap: int = Field(default=60, ge=1)

    feedback: Annotated[Literal["printed", "calm"], Choice(("printed", "calm"))] = "calm"
    blind_eta: Annotated[float, Tunable(0.01, 10, log=True)] = Field(default=1.0, gt=0)
    growth: Annotated[float, Tunable(1.01, 2, log=True)] = Field(default=1.03, gt=1)
    caution: Annotated[float, Tunable(1, 20, log=True)] = Field(default=9.0, gt=0)
    closeness: Annotated[float, Tunable(0.1, 2)] = Field(default=1.0, gt=0)
    reach: tuple[float, float] = (0.01, 5.0)

    @model_validator(mode="after")
    def _ordered(self) -> "Cmp":
        if not 0 < self.reach[0] <= self.reach[1]:
            raise ValueError(f"reach needs 0 < smallest <= largest, got {self.reach}")
        return self

    def init(self) -> State:
        """The step size of Algorithm 2."""
        return {"eta": self.blind_eta}

    def poison(self, view: View, state: State) -> Poisoned:
        """Craft for the rule where it is known, by feedback where it is not."""
        rule = None if view.knowledge == "none" else view.aggregator
        if isinstance(rule, Mean):
            sent = self._against_mean(view, state)
        elif isinstance(rule, KrumLike):
            sent = self._against_krum(view, state, rule)
        else:
            sent = self._blind(view, state)
        return sent._replace(updates=honest_statistics(view, sent.updates))

    def _against_mean(self, view: View, state: State) -> Poisoned:
        """Theorem 1; with partial knowledge weights are known of the own clients only, and P is taken for M / C."""
        target_D, state = self._target(view, state)
        if view.knowledge == "full":
            total = float(view.own_weights.sum() + view.benign_weights.sum())
            share = float(view.own_weights.sum()) / total
            benign_sum_D = (view.benign_weights / total).to(target_D) @ view.benign_updates
        else:
            share = view.n_malicious / view.n_clients
            benign_sum_D = estimated_benign_sum(*known(view), share)
        crafted_D = replacement(target_D, benign_sum_D, share)
        metrics = {"norm": float(crafted_D.norm()), "target_distance": float(target_D.norm()), "share": share}
        return Poisoned(crafted_D.repeat(view.n_malicious, 1), state, metrics)

    def _against_krum(self, view: View, state: State, rule: KrumLike) -> Poisoned:
        """Algorithm 1 in the space of updates."""
        offsets_MD = self._offsets(view)
        rehearsal = self._rehearsal(view, rule, offsets_MD)
        margin, metrics = self._margin(view, state)
        draws = count()

        def accepts(update_D: Tensor) -> bool:
            if self.constraint == "original":
                return rehearsal.selected(update_D, margin)
            return rehearsal.near_enough(update_D, margin)

        def gradient(update_D: Tensor) -> Tensor:
            return self._gradient(view, view.global_D + view.server_lr * update_D, next(draws))

        start_D, state = self._start(view, state, rehearsal, accepts)
        found = constrained_descent(
            start_D, gradient, accepts, eta=self.eta, decay=self.decay, stop=self.stop, cap=self.cap
        )
        centre_D, radius = rehearsal.ball()
        metrics |= {
            "margin": margin,
            "accepted": float(found.accepted),
            "tried": float(found.tried),
            "eta": found.eta,
            "feasible": float(found.feasible),
            "norm": float(found.point_D.norm()),
            "distance": float((found.point_D - centre_D).norm()),
        }
        if isfinite(radius):
            metrics["radius"] = radius
        if view.knowledge == "partial":
            uploaded_D = view.global_D + view.server_lr * found.point_D
            state = {**state, "margin": margin, "round": view.round, "uploaded_D": uploaded_D}
        return Poisoned(found.point_D + offsets_MD, state, metrics)

    def _margin(self, view: View, state: State) -> tuple[float, dict[str, float]]:
        """The margin of this round, fed back by whether the server adopted the last crafted model."""
        exact = view.knowledge == "full"
        start = (
            (0.05 if self.constraint == "simplified" else 0.0 if exact else 0.03)
            if self.margin is None
            else self.margin
        )
        margin = float(state.get("margin", start))
        if exact or state.get("round") != view.round - 1:
            return margin, {}
        hit = adopted(state["uploaded_D"], view.previous_D, view.global_D, HALFWAY, self.eps)
        if not hit:
            return min(margin + self.tighten, WIDEST), {"hit": 0.0}
        relaxed = self.relax * margin if margin > 0 else margin
        return max(relaxed - self.loosen, NARROWEST), {"hit": 1.0}

    def _rehearsal(self, view: View, rule: KrumLike, offsets_MD: Tensor) -> Rehearsal:
        """The server's Krum over all clients, the unseen ones guessed."""
        f, squared = rule.n_byzantine, rule.squared
        if view.knowledge == "full":
            return Rehearsal(view.benign_updates, offsets_MD, f, squared=squared)
        known_ND, _ = known(view)
        n_benign = view.n_clients - view.n_malicious
        if self.proxies == "repeat":
            copies_B = torch.arange(n_benign) % len(known_ND)
            return Rehearsal(known_ND, offsets_MD, f, squared=squared, copies_B=copies_B)
        ratio = len(known_ND) / max(1, n_benign)
        crafted = min(view.n_malicious, max(1, round(ratio * view.n_malicious)))
        return Rehearsal(known_ND, offsets_MD[:crafted], round(ratio * f), squared=squared)

    def _start(
        self, view: View, state: State, rehearsal: Rehearsal, accepts: Callable[[Tensor], bool]
    ) -> tuple[Tensor, State]:
        """Where Algorithm 1 starts, as an update."""
        if self.start == "centroid":
            return rehearsal.centre_D, state
        if self.start == "global":
            return torch.zeros_like(view.global_D), state
        target_D, state = self._target(view, state)
        centre_D, radius = rehearsal.ball()
        # The radius guarantees eq. 13, not Krum's choice.
        return shrink_until(accepts, toward(centre_D, target_D, radius), centre_D), state

    def _blind(self, view: View, state: State) -> Poisoned:
        """Algorithm 2; the feedback is skipped where the attackers did not see the round after their last upload."""
        eta, calm = float(state["eta"]), self.feedback == "calm"
        metrics: dict[str, float] = {}
        if state.get("round") == view.round - 1:
            hit = adopted(state["uploaded_D"], view.previous_D, view.global_D, self.closeness, self.eps)
            eta = next_step(eta, hit, self.growth, self.caution if calm else 1.0)
            metrics["hit"] = float(hit)
        step_D = -self._gradient(view, view.global_D, 0)
        if calm:
            eta = min(max(eta, self.reach[0]), self.reach[1])
            length = float(view.own_updates.norm(dim=1).mean())
            step_D = step_D * (length / max(float(step_D.norm()), 1e-12))
        crafted_D = eta * step_D
        uploaded_D = view.global_D + view.server_lr * crafted_D
        metrics |= {"eta": eta, "norm": float(crafted_D.norm())}
        state = {**state, "eta": eta, "round": view.round, "uploaded_D": uploaded_D}
        return Poisoned(crafted_D + self._offsets(view), state, metrics)

    def _offsets(self, view: View) -> Tensor:
        """`[M, D]` the crafted rows' distances from the first: 0, then noise of length eps (sigma has no effect)."""
        noise_MD = torch.randn(view.n_malicious, len(view.global_D), generator=view.generator("copies"))
        noise_MD *= self.eps / noise_MD.norm(dim=1, keepdim=True)
        noise_MD[0] = 0
        return noise_MD.to(view.global_D)

    def _lesson(self, view: View, clean: Samples) -> Samples:
        """What a model is to learn from these samples: dirty ones, among clean ones where those alone would not do."""
        if self.objective.name in ("untargeted", "label_map"):
            return view.dirty(clean)
        kept = round(self.clean_share * len(clean))
        dirty = view.dirty(clean[kept:])
        repeated = torch.arange(len(clean) - kept, device=dirty.y.device) % len(dirty)
        return Samples.cat([clean[:kept], dirty[repeated]])

    def _gradient(self, view: View, theta_D: Tensor, draw: int) -> Tensor:
        """Gradient of the attackers' loss at a model; untargeted attackers ascend the honest loss."""
        samples = self._lesson(view, view.draw(self.batch, view.generator("batch", draw)))
        gradient_D = view.flat.gradient(theta_D, samples)
        return -gradient_D if isinstance(self.objective, Untargeted) else gradient_D

    def _target(self, view: View, state: State) -> tuple[Tensor, State]:
        """The update that turns the global model into the designated model, trained when it is first needed."""
        if "designated_D" not in state:
            everything = view.draw(None, view.generator("designated"))
            if isinstance(self.objective, Untargeted):
                samples = LabelMap().dirty(everything, Goal(everything, None), view.classes)
            else:
                samples = self._lesson(view, everything)
            optimizer = Sgd(lr=self.designated_lr)
            client = Client(epochs=self.designated_epochs, batch_size=self.designated_batch_size, optimizer=optimizer)
            state = {**state, "designated_D": view.global_D + view.train_one(samples, client)}
        target_D: Tensor = (state["designated_D"] - view.global_D) / view.server_lr
        return target_D, state


def known(view: View) -> tuple[Tensor, Tensor]:
    """Updates and weights that stand for the benign clients' under partial knowledge: the own honest and the visible."""
    visible_VD, own_M = view.visible_updates, view.own_weights
    return torch.cat([view.own_updates, visible_VD]), torch.cat([own_M, own_M.mean().expand(len(visible_VD))])
