"""What further benign training makes of the poison."""

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fl_lightning.analysis._page import CLEAN, POISONED, Section, picture, table, text
from fl_lightning.analysis._subject import Subject
from fl_lightning.metrics import evaluate, persistence
from fl_lightning.participation import Once

ROUNDS = 10


def healing(subject: Subject, rounds: int = ROUNDS) -> list[dict[str, float]]:
    """Figures of the poisoned model and after each further round in which nobody attacks.

    Returns:
        `rounds + 1` mappings, the first of the model itself; fewer when the training diverges.
    """
    quiet = replace(subject.federation.experiment.participation, schedule=Once(round=0))  # over: rounds go on
    federation = subject.continued(attack=None, participation=quiet)
    goal, classes = federation.goal, federation.data.classes

    def figures() -> dict[str, float]:
        return evaluate(subject.flat, federation.state.global_D, goal, classes, attacked=True)

    found = [figures()]
    for _ in range(rounds):
        federation.round()
        if federation.state.stopped:
            break
        found.append(figures())
    return found


def persists(subject: Subject) -> Section:
    """Accuracy and success over further benign rounds."""
    found = healing(subject)
    names = {"global/accuracy": ("accuracy", CLEAN), "attack/success": ("attack success", POISONED)}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes: Any = figure.subplots()
    for name, (label, color) in names.items():
        points = [(step, one[name]) for step, one in enumerate(found) if name in one]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o", markersize=4)
    if subject.clean_D is not None:
        axes.axhline(
            subject.success_rate(subject.clean_D), color=POISONED, linestyle=":", label="success on the clean model"
        )
    axes.set(xlabel="further rounds without attack", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    words = (
        f"The same federation goes on from the poisoned model for {len(found) - 1} rounds in which all participants train "
        "honestly: same clients, server and defenses."
    )
    parts = [text(words), picture(figure, "0: the registered model")]
    told = persistence([{**found[0], "attack/active": 1.0}, *found[1:]])
    if "attack/persistence" in told and found[0].get("attack/success", 0) >= 0.5:
        rounds = told["attack/persistence_for_good"]
        fate = (
            "never falls below 0.5" if told["attack/persists"] else f"is below 0.5 for good after {rounds:.0f} rounds"
        )
        parts.append(text(f"The success {fate}."))
    rows = [[str(step), *(one.get(name) for name in names)] for step, one in enumerate(found)]
    parts.append(table(["round", *(label for label, _ in names.values())], rows))
    return Section("Persistence under benign training", tuple(parts))
