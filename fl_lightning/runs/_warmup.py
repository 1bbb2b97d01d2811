"""Rounds before the attack starts are the same for all attacks: run once, continued by every trial."""

import hashlib
import json
from pathlib import Path

from fl_lightning.config import Experiment
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.runs._checkpoint import Checkpoint, save_state

__all__ = ["Warmup", "clean_rounds"]


def clean_rounds(experiment: Experiment) -> int:
    """Number of rounds before the first one in which the malicious clients attack."""
    schedule = experiment.participation.schedule
    rounds = range(experiment.rounds)
    return next((round for round in rounds if schedule.adversarial(round, experiment.seed)), experiment.rounds)


def attack_start(experiment: Experiment) -> int:
    """Rounds before the first attacked one; 0 where none is attacked."""
    return clean_rounds(experiment) % experiment.rounds


class Warmup:
    """The clean rounds of an experiment, kept on disk for every other experiment that begins with the same ones.

    Two experiments share them when they differ in nothing but the attack (its objective is measured in clean rounds, too,
    and must be the same), the number of rounds, and what tracks and searches them.

    Args:
        experiment: the experiment.
        folder: where states are kept.
    """

    def __init__(self, experiment: Experiment, folder: Path):
        tree = experiment.to_dict()
        objective = (tree["attack"] or {}).get("objective")
        same = {
            key: value for key, value in tree.items() if key not in ("attack", "tracking", "sweep", "rounds", "seeds")
        }
        text = json.dumps([same, objective], sort_keys=True)
        self.rounds = clean_rounds(experiment)
        # The last round is always evaluated: it is no prefix of a longer experiment then.
        self.useful = 0 < self.rounds < experiment.rounds and not experiment.evaluation.twin
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{self.rounds}.pt"

    def restore(self, federation: Federation) -> None:
        """Bring a federation that has not begun to the round in which the attack starts, if its rounds were run before."""
        if self.useful and federation.state.round == 0 and self.path.is_file():
            own = dict(federation.state.attack)
            Checkpoint(self.path).restore(federation)
            federation.state.attack = own

    def start(self, federation: Federation) -> None:
        """Nothing to do."""

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Keep the state right before the first adversarial round."""
        if self.useful and federation.state.round == self.rounds and not federation.state.over:
            save_state(federation, self.path)
