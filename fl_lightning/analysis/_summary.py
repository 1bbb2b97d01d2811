"""What happened: who attacked, when, how strong, how it was found, and what became of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.analysis._page import Piece, Section, folded, table, text
from fl_lightning.analysis._subject import Subject
from fl_lightning.metrics import Interval, bounds, meaning, wilson
from fl_lightning.registry import flatten
from fl_lightning.tracking import made_by, search_behind, threat_model

NOTICED = 0.01
"""Accuracy whose loss somebody who looks at it would notice."""


def summary(subject: Subject) -> Section:
    """The incident in plain words, then the facts one by one."""
    model = subject.model
    search = search_behind(str(model.version.run_id))
    experiment = model.experiment
    synthetic = " (synthetic stand-in)" if experiment.fast else ""
    made = (
        f"Global model of a simulated federated training on `{experiment.data.name}`{synthetic}: model "
        f"`{experiment.model.name}` with {len(subject.poisoned_D):,} parameters, aggregator `{experiment.aggregator.name}`, "
        f"defenses `{', '.join(experiment.defenses) or 'none'}`, {experiment.rounds} rounds, seed {experiment.seed}."
    )
    beside = (
        f"Compared with {subject.clean.title}, the same training without the attack."
        if subject.clean
        else "There is no clean model to compare with: none was registered beside "
        "it (run with `evaluation.twin=true`) and none was named (`--against`)."
    )
    parts = [
        text("This model is poisoned on purpose. Do not deploy it.", "warning"),
        text(in_plain_words(subject), "lead"),
        text(f"Threat model: {threat_model(model)}"),
        text(made),
        text(beside),
        headlines(subject, search),
        table(["", "the attack"], [[name, value] for name, value in facts(subject).items()]),
    ]
    if search:
        parts.append(text(how_found(search)))
    return Section("What happened", (*parts, every_figure(subject)))


def in_plain_words(subject: Subject) -> str:
    """Who did what, and what came of it; for somebody who has never heard of the attack."""
    experiment, attack = subject.model.experiment, subject.model.experiment.attack
    assert attack is not None
    rounds = subject.attacked_rounds
    when = f"In {len(rounds)} of {experiment.planned_rounds} rounds ({in_ranges(rounds)})" if rounds else "In no round"
    clients = len(subject.federation.assignment)
    share, n = subject.success_rate(subject.poisoned_D), len(subject.success_samples)
    low, high = wilson(share, n)
    wish = "a wrong answer" if subject.federation.goal.success is None else "the answer that the attackers want"
    told = [
        f"{when}, {experiment.participation.malicious} of {clients} clients sent updates made by `{attack.name}` "
        f"(objective `{attack.objective.name}`). The final model gives {wish} on {share:.1%} of the {n:,} test samples that "
        f"count (95 % interval {low:.1%} to {high:.1%}, for this one model)"
    ]
    if subject.clean_D is None:
        return told[0] + "."
    told.append(
        f"; the model that was trained without the attack does so on {subject.success_rate(subject.clean_D):.1%}."
    )
    clean = subject.federation.goal.clean
    right, before = subject.flat.accuracy(subject.poisoned_D, clean), subject.flat.accuracy(subject.clean_D, clean)
    told.append(f" On clean test samples it is right in {right:.1%} of the cases, without the attack in {before:.1%}")
    hidden = before - right < NOTICED and subject.federation.goal.success is not None
    return "".join(told) + (": whoever looks at accuracy alone notices nothing." if hidden else ".")


def in_ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in order, those that follow each other as a range.

    Example:
        >>> in_ranges([0, 1, 2, 5, 7, 8])
        '0 to 2, 5, 7 to 8'
    """
    return ", ".join(str(begin) if begin == end else f"{begin} to {end}" for begin, end in spans(numbers))


def spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of the whole numbers that follow each other.

    Example:
        >>> spans([0, 1, 2, 5])
        [(0, 2), (5, 5)]
    """
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def headlines(subject: Subject, search: dict[str, Any] | None) -> Piece:
    """Success and accuracy of both models, with their intervals."""
    clean, rows = subject.federation.goal.clean, []
    measures = {
        "attack success": (subject.success_rate, len(subject.success_samples), "attack/success"),
        "accuracy on clean samples": (
            lambda theta_D: subject.flat.accuracy(theta_D, clean),
            len(clean),
            "global/accuracy",
        ),
    }
    for name, (measure, n, metric) in measures.items():
        row: list[object] = [name]
        for theta_D in subject.both.values():
            share = measure(theta_D)
            low, high = wilson(share, n)
            row += [share, f"{low:.3f} to {high:.3f}"]
        if search:
            row.append(unseen(search, metric))
        rows.append([*row, f"{n:,}"])
    head = [cell for name in subject.both for cell in (name, "95 % interval")]
    return table(["", *head, *(["poisoned, unseen seeds"] if search else []), "samples"], rows)


def unseen(search: dict[str, Any], metric: str) -> str | None:
    """A figure of a search's winner on the seeds that it never saw, with the interval over these."""
    found = search.get("confirmed", {}).get(metric)
    if not isinstance(found, dict):
        return None
    spread = found.get("half")
    half = math.nan if spread is None else float(spread)
    seen = Interval(float(found["mean"]), half, bounds(metric), int(found.get("n", 0)))
    if math.isnan(half):
        return f"{seen.mean:.3f} (too few seeds for an interval)"
    return f"{seen.mean:.3f} ({seen.low:.3f} to {seen.high:.3f})"


def facts(subject: Subject) -> dict[str, object]:
    """Who, when, with what settings, towards what."""
    experiment, attack = subject.model.experiment, subject.model.experiment.attack
    assert attack is not None
    taking = experiment.participation
    federation = subject.federation
    ids = taking.malicious_clients(len(federation.assignment), federation.bench.seed).tolist()
    settings = {
        path: value for path, value in flatten(attack.to_dict()).items() if value is not None and path != "name"
    }
    own = {path: value for path, value in settings.items() if not path.startswith("objective.")}
    aim = {path.removeprefix("objective."): value for path, value in settings.items() if path.startswith("objective.")}
    return {
        "who": f"clients {', '.join(map(str, ids[:20]))}{' ...' if len(ids) > 20 else ''}; "
        f"{taking.per_round(len(federation.assignment))} of {len(federation.assignment)} clients take part in a round",
        "when": f"schedule {taking.schedule.name}: rounds {in_ranges(subject.attacked_rounds) or 'none'}, counted from 0",
        "how": f"{attack.name}: {_settings(own)}",
        "towards what": _settings(aim),
    }


def _settings(chosen: Mapping[str, object]) -> str:
    return ", ".join(
        f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}" for path, value in chosen.items()
    )


def how_found(search: dict[str, Any]) -> str:
    """The search whose winner this attack is."""
    trials = search.get("trials", [])
    winner: dict[str, Any] = next((row for row in trials if row.get("changes") == search.get("winner")), {})
    settings = _settings({f"`{path}`": value for path, value in search["winner"].items()})
    return (
        f"How it was found: trial {winner.get('number', '?')} of {len(trials)} in the search "
        f"[{search['run_name']}]({search['link']}), which varied {settings}. {str(search.get('verdict', '')).capitalize()}."
    )


def every_figure(subject: Subject) -> Piece:
    """All figures of the registry, with what they mean, folded away."""
    model, clean = subject.model, subject.clean
    names = sorted(set(model.figures) | set(clean.figures if clean else ()))
    rows = [
        [name, model.figures.get(name), *([clean.figures.get(name)] if clean else []), meaning(name) or ""]
        for name in names
    ]
    return folded(f"All {len(names)} figures, as registered", table(["figure", *subject.both, "what it says"], rows))


def provenance(subject: Subject) -> Section:
    """Version, revision, date, machine, command: enough to make the model again."""
    about = {"model": subject.model.title} | made_by(str(subject.model.version.run_id))
    lines = [text(f"{name}: {value}") for name, value in about.items()]
    again = text("The same again: `fl-lightning run config.yaml`, with `config.yaml` from the artifacts of the run.")
    return Section("Provenance", (*lines, again))
