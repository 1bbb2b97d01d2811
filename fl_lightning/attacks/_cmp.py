"""Covert model poisoning (CMP): crafted models that the server's own rule adopts.

References:
    Wei, Li, Ding, Ma, Jeon, Poor, "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", 2021.
"""

from math import inf, isfinite
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Bulyan, Krum, Mean, MultiKrum
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._cmp_blind import adopted, next_step
from fl_lightning.attacks._cmp_krum import Descent, Rehearsal, constrained_descent, toward
from fl_lightning.attacks._cmp_mean import estimated_benign_sum, replacement
from fl_lightning.attacks._objectives import LabelMap, Objective
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.client import Client, Sgd
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.registry import Slot, component

SHRINK = 0.95


@component
class Cmp(Attack):
    name: ClassVar[str] = "cmp"

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=LabelMap)
    clean_share: Annotated[float, Tunable(0.1, 0.9)] = Field(default=0.5, ge=0, lt=1)
    batch: int = Field(default=1000, ge=1)
    eps: Annotated[float, Tunable(1e-5, 1e-1, log=True)] = Field(default=1e-3, ge=0)

    designated_epochs: Annotated[int, Tunable(1, 10)] = Field(default=3, ge=1)
    designated_lr: Annotated[float, Tunable(1e-3, 0.5, log=True)] = Field(default=0.1, gt=0)
    designated_batch_size: int = Field(default=64, ge=1)

    constraint: Annotated[Literal["original", "simplified"], Choice(("original", "simplified"))] = "original"
    start: Annotated[Literal["centroid", "global", "theorem2"], Choice(("centroid", "global", "theorem2"))] = "centroid"
    proxies: Annotated[Literal["repeat", "scaled"], Choice(("repeat", "scaled"))] = "repeat"
    margin: Annotated[float, Tunable(0, 0.2)] = Field(default=0.0, ge=0, lt=1)
    eta: Annotated[float, Tunable(0.05, 5, log=True)] = Field(default=1.0, gt=0)
    decay: Annotated[float, Tunable(0.2, 0.9)] = Field(default=0.5, gt=0, lt=1)
    stop: float = Field(default=1 / 256, gt=0, lt=1)
    cap: int = Field(default=60, ge=1)

    feedback: Annotated[Literal["printed", "calm"], Choice(("printed", "calm"))] = "calm"
    blind_eta: Annotated[float, Tunable(0.01, 10, log=True)] = Field(default=1.0, gt=0)
    growth: Annotated[float, Tunable(1.01, 2, log=True)] = Field(default=1.1, gt=1)
    caution: Annotated[float, Tunable(0.5, 20, log=True)] = Field(default=1.0, gt=0)
    closeness: Annotated[float, Tunable(0.1, 2)] = Field(default=1.0, gt=0)
    blind_start: str = "global"
    unit: str = "honest"

    def poison(self, view: View, state: State) -> Poisoned:
        if view.knowledge != "none":
            match view.aggregator:
                case Mean():
                    return self._against_mean(view, state)
                case Krum() | MultiKrum() | Bulyan() as rule:
                    return self._against_krum(view, state, rule)
        return self._blind(view, state)

    # Against the mean

    def _against_mean(self, view: View, state: State) -> Poisoned:
        target_D, state = self._target(view, state)
        own_M = view.own_weights
        if view.knowledge == "full":
            total = own_M.sum() + view.benign_weights.sum()
            benign_sum_D = (view.benign_weights / total).to(target_D) @ view.benign_updates
            share = float(own_M.sum() / total)
        else:
            share = view.n_malicious / view.n_clients
            known_ND, weights_N = self._known(view)
            benign_sum_D = estimated_benign_sum(known_ND, weights_N, share)
        crafted_D = replacement(target_D, benign_sum_D, share)
        metrics = {"norm": float(crafted_D.norm()), "target_distance": float(target_D.norm())}
        return Poisoned(crafted_D.expand(view.n_malicious, -1), state, metrics)

    # Against Krum

    def _against_krum(self, view: View, state: State, rule: Krum | MultiKrum | Bulyan) -> Poisoned:
        offsets_MD = self._offsets(view)
        rehearsal = self._rehearsal(view, rule, offsets_MD)
        centre_D, radius = rehearsal.ball()
        original = self.constraint == "original"

        def accepts(update_D: Tensor) -> bool:
            return rehearsal.selected(update_D) if original else rehearsal.near_enough(update_D, self.margin)

        def gradient(update_D: Tensor) -> Tensor:
            gradient.draws += 1
            return self._gradient(view, view.global_D + view.server_lr * update_D, gradient.draws)
        gradient.draws = 0

        if self.start == "centroid":
            start_D = rehearsal.centre_D
        elif self.start == "global":
            start_D = torch.zeros_like(view.global_D)
        else:
            target_D, state = self._target(view, state)
            start_D = toward(centre_D, target_D, radius)
            for _ in range(60):
                if accepts(start_D): break
                start_D = centre_D + SHRINK * (start_D - centre_D)
        found = constrained_descent(start_D, gradient, accepts, eta=self.eta, decay=self.decay, stop=self.stop, cap=self.cap)
        metrics = {
            "accepted": float(found.accepted),
            "tried": float(found.tried),
            "eta": found.eta,
            "feasible": float(found.feasible),
            "norm": float(found.point_D.norm()),
            "distance": float((found.point_D - centre_D).norm()),
        }
        if isfinite(radius):
            metrics["radius"] = radius
        return Poisoned(found.point_D + offsets_MD, state, metrics)

    def _rehearsal(self, view, rule, offsets_MD):
        f, squared = rule.n_byzantine, rule.squared
        n_benign = view.n_clients - view.n_malicious
        if view.knowledge == "full":
            return Rehearsal(view.benign_updates, offsets_MD, f, squared=squared)
        known_ND, _ = self._known(view)
        if self.proxies == "repeat":
            copies_B = torch.arange(n_benign) % len(known_ND)
            return Rehearsal(known_ND, offsets_MD, f, squared=squared, copies_B=copies_B)
        ratio = len(known_ND) / max(1, n_benign)
        crafted = min(view.n_malicious, max(1, round(ratio * view.n_malicious)))
        return Rehearsal(known_ND, offsets_MD[:crafted], round(ratio * f), squared=squared)

    def _known(self, view: View):
        own_MD, own_M = view.own_updates, view.own_weights
        visible_VD = view.visible_updates
        return torch.cat([own_MD, visible_VD]), torch.cat([own_M, own_M.mean().expand(len(visible_VD))])

    # Blind

    def init(self) -> State:
        return {"eta": self.blind_eta}

    def _blind(self, view: View, state: State) -> Poisoned:
        eta, metrics = float(state["eta"]), {}
        if state.get("round") == view.round - 1:
            hit = adopted(state["uploaded_D"], view.previous_D, view.global_D, self.closeness, self.eps)
            eta = next_step(eta, hit, self.growth, self.caution, 1e-6, 1e6)
            metrics["hit"] = float(hit)
        direction_D = -self._gradient(view, view.global_D, 0)
        if self.feedback == "calm":
            unit = view.own_updates.norm(dim=1).mean() if self.unit == "honest" else 1.0
            direction_D = direction_D * (unit / direction_D.norm())
        crafted_D = eta * direction_D
        if self.blind_start == "centroid":
            crafted_D = crafted_D + view.own_updates.mean(0)
        state = {**state, "eta": eta, "round": view.round, "uploaded_D": view.global_D + view.server_lr * crafted_D}
        metrics |= {"eta": eta, "norm": float(crafted_D.norm())}
        return Poisoned(crafted_D + self._offsets(view), state, metrics)

    # Shared

    def _offsets(self, view: View) -> Tensor:
        noise_MD = torch.randn(view.n_malicious, len(view.global_D), generator=view.generator("copies"))
        noise_MD = self.eps * noise_MD / noise_MD.norm(dim=1, keepdim=True)
        noise_MD[0] = 0
        return noise_MD.to(view.global_D)

    def _lesson(self, view: View, clean: Samples) -> Samples:
        if self.objective.name == "untargeted":
            return clean
        if self.objective.name == "label_map":
            return view.dirty(clean)
        kept = round(self.clean_share * len(clean))
        dirty = view.dirty(clean[kept:])
        repeated = torch.arange(len(clean) - kept, device=dirty.y.device) % len(dirty)
        return Samples.cat([clean[:kept], dirty[repeated]])

    def _gradient(self, view: View, theta_D: Tensor, draw: int) -> Tensor:
        samples = self._lesson(view, view.draw(self.batch, view.generator("batch", draw)))
        gradient_D = view.flat.gradient(theta_D, samples)
        return -gradient_D if self.objective.name == "untargeted" else gradient_D

    def _target(self, view: View, state: State) -> tuple[Tensor, State]:
        if "designated_D" not in state:
            clean = view.draw(2**60, view.generator("designated"))
            order = torch.randperm(len(clean), generator=view.generator("designated order"))
            clean = clean[order.to(clean.y.device)]
            if self.objective.name == "untargeted":
                samples = LabelMap().dirty(clean, None, view.classes)
            else:
                samples = self._lesson(view, clean)
            client = Client(epochs=self.designated_epochs, batch_size=self.designated_batch_size, optimizer=Sgd(lr=self.designated_lr))
            state = {**state, "designated_D": view.global_D + view.train_one(samples, client)}
        return (state["designated_D"] - view.global_D) / view.server_lr, state
