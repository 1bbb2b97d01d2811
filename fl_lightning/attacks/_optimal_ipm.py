"""Optimal IPM: the multiple of the reversed honest mean that does most harm to the server.

References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, section 6 (there called optimal FOE).
    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._optimal import Optimal
from fl_lightning.attacks._perturbation import perturbation
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


class OptimalIpm(Optimal):
    """Optimal IPM: all malicious clients send -epsilon mu with the epsilon that hurts the server most.

    Epsilon is at least -1: below 0 a weakened honest mean is sent, which rules that select rows still take.
    """

    name: ClassVar[str] = "optimal_ipm"

    def directions(self, known_HP: Tensor) -> list[Tensor]:
        """Against the mean."""
        return [perturbation(known_HP, "unit")]

    def poison(self, view: View, state: State) -> Poisoned:
        """Also says which epsilon of -epsilon mu the strength is."""
        poisoned = super().poison(view, state)
        length = float(torch.linalg.vector_norm(known_parameters(view).mean(0)))
        epsilon = poisoned.metrics["gamma"] / length - 1 if length else -1.0
        return poisoned._replace(metrics={**poisoned.metrics, "epsilon": epsilon})
