"""The rounds of the run that made the model, from MLflow."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from fl_lightning.analysis._page import CLEAN, OTHER, POISONED, Section, picture, text
from fl_lightning.analysis._subject import Subject
from fl_lightning.analysis._summary import in_ranges, spans
from fl_lightning.tracking import client

PANELS: dict[str, dict[str, tuple[str, str]]] = {
    "for users and attackers": {
        "global/accuracy": ("accuracy", CLEAN),
        "attack/success": ("attack success", POISONED),
        "attack/selected": ("attackers' share of the aggregate", OTHER),
    },
    "cosine of malicious updates with all others": {"stealth/cosine": ("mean", POISONED)},
    "L2 distance of malicious from benign updates": {"stealth/l2_max": ("largest", POISONED)},
    "what the defenses miss and accuse": {
        "defense/missed_alarm_rate": ("missed alarms", POISONED),
        "defense/false_alarm_rate": ("false alarms", CLEAN),
    },
    "distance from the attack-free twin": {
        "impact/aep": ("attack effect on parameters", POISONED),
        "impact/aep_predicted": ("predicted", OTHER),
    },
    "Hessian times the attack effect": {
        "impact/null_space": ("attack effect", POISONED),
        "impact/null_space_random": ("random direction", OTHER),
    },
}

History = Mapping[str, list[tuple[int, float]]]


def history(read: Callable[[str], list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """(round, value) of every metric of the panels that was logged, by name and in order of the rounds.

    Args:
        read: the values of a metric by its name; a round that was logged twice counts with its last value.
    """
    found = {name: sorted(dict(read(name)).items()) for lines in PANELS.values() for name in lines}
    return {name: points for name, points in found.items() if points}


def draw(found: History, attacked: Sequence[int] = ()) -> Figure:
    """A panel for each group of metrics of which any was logged; attacked rounds are shaded."""
    panels = {title: lines for title, lines in PANELS.items() if any(name in found for name in lines)}
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10.5, 2.9 * rows), layout="constrained")
    every = figure.subplots(rows, 2, squeeze=False, sharex=True).flatten()
    for axes, (title, lines) in zip(every, panels.items(), strict=False):
        for name, (label, color) in lines.items():
            if name in found:
                marker = "o" if len(found[name]) < 15 else None
                axes.plot(*zip(*found[name], strict=True), label=label, color=color, marker=marker, markersize=4)
        for begin, end in spans(attacked):
            axes.axvspan(begin - 0.5, end + 0.5, color=POISONED, alpha=0.08, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if title == "for users and attackers":
            axes.set_ylim(-0.02, 1.02)
    for axes in every[len(panels) :]:
        axes.axis("off")
    figure.supxlabel("communication round", fontsize=10)
    return figure


def rounds(subject: Subject) -> Section:
    """Accuracy, success and stealth over the rounds."""
    store, run_id = client(), str(subject.model.version.run_id)
    found = history(lambda name: [(point.step, point.value) for point in store.get_metric_history(run_id, name)])
    if not found:
        return Section("Round by round")
    words = f"Attacked rounds are shaded: {in_ranges(subject.attacked_rounds) or 'none'}."
    return Section("Round by round", (text(words), picture(draw(found, subject.attacked_rounds), f"run {run_id}")))
