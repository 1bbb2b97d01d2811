"""What every detector and every aggregator of the platform says about the updates of one more round."""

from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Median, finite_rows
from fl_lightning.analysis._page import CLEAN, POISONED, Section, picture, table, text
from fl_lightning.analysis._panel import panel
from fl_lightning.analysis._subject import Subject
from fl_lightning.analysis._weights import densities
from fl_lightning.defenses import Defense, ServerContext, applied
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, Submitted
from fl_lightning.metrics import detection
from fl_lightning.participation import Always

VALIDATION = 500
VALUES = 200_000
SEARCHED = 100
"""Further rounds in which malicious clients are looked for."""


def judged_by(defense: Defense, updates_CD: Tensor, poisoned_C: Tensor, context: ServerContext) -> dict[str, Any]:
    """What a defense says about the rows of a round.

    Args:
        defense: a detector or a transform.
        updates_CD: `[C, D]` finite updates.
        poisoned_C: `[C]` bool, which of them are malicious.
        context: what the server knows.

    Returns:
        `flagged`, `caught` (flagged rows that are malicious), the rates of `detection`, and a `note`; neither of the first two,
        nor rates of alarms, for a defense that flags nobody by design, such as clipping.

    Raises:
        ValueError: the defense cannot judge these rows.
    """
    validation, notes = context.validation is not None, []
    try:
        defense.check(context.aggregator, validation)
    except ValueError:  # some know a few rules only
        defense.check(Median(), validation)
        context = replace(context, aggregator=Median())
        notes.append("works with the median in place of the configured rule")
    verdict = defense.apply(updates_CD, context, dict(defense.init()))
    after_CD = applied(verdict, updates_CD, context.layout)
    changed = not torch.equal(after_CD, updates_CD)
    if changed:
        before, after = (float(rows[poisoned_C].norm(dim=1).mean()) for rows in (updates_CD, after_CD))
        notes.append(f"changes updates: mean norm of the malicious ones {before:.3g} → {after:.3g}")
    if not torch.equal(verdict.weights_C, context.weights_C):
        before, after = (
            float((rows * poisoned_C).sum() / rows.sum()) for rows in (context.weights_C, verdict.weights_C)
        )
        notes.append(f"reweighs: the malicious ones' share {before:.3g} → {after:.3g}")
        changed = True
    acts = defense.acts_at("broadcast") or defense.acts_at("after_step") or defense.acts_at("finish")
    flags = verdict.flagged_C is not None or not bool(verdict.keep_C.all())
    if acts and not (flags or changed):
        notes.append("changes the model itself, not the updates")
    found: dict[str, Any] = dict(detection(verdict.keep_C, poisoned_C, verdict.scores_C, "defense"))
    if flags or not (changed or acts):
        found["flagged"] = int((~verdict.keep_C).sum())
        found["caught"] = int((~verdict.keep_C & poisoned_C).sum())
    else:  # it flags nobody by design, such as clipping: there is no alarm that it could miss
        found = {name: value for name, value in found.items() if not name.endswith("alarm_rate")}
    found["note"] = "; ".join(notes)
    return found


def next_round(subject: Subject) -> tuple[Federation, Submitted] | None:
    """The updates of an adversarial round that starts near the poisoned model; None when no malicious client is drawn.

    One such round is run before, so that attack and server know a round that went before as they do in training.
    """
    experiment = subject.federation.experiment
    attacking = replace(experiment.participation, schedule=Always())
    federation = subject.continued(participation=attacking)
    federation.round()
    for _ in range(SEARCHED):
        state = federation.state
        cohort = attacking.sample(state.round, len(federation.assignment), federation.bench.seed)
        if bool(cohort.malicious.any()) and not bool(cohort.malicious.all()):
            return federation, federation.submitted()
        state.round += 1
    return None


def judges(subject: Subject) -> Section:
    """The updates of one more round, and the platform's verdicts about them."""
    title = "What the platform's defenses would say now"
    found = next_round(subject)
    if found is None:
        return Section(title, (text("In no further round benign and malicious clients meet."),))
    federation, sent = found
    finite_C = finite_rows(sent.updates_CD)
    updates_CD, weights_C, poisoned_C = (part[finite_C] for part in (sent.updates_CD, sent.weights_C, sent.poisoned_C))
    lost = int((~finite_C).sum())
    malicious, clients = int(poisoned_C.sum()), len(updates_CD)
    if not malicious or malicious == clients:
        return Section(title, (text(f"{lost} updates hold NaN or Inf; the rest cannot be compared."),))
    context, stand_in = federation.context(weights_C), ""
    if context.validation is None or not len(context.validation):
        samples = subject.some(federation.goal.clean, VALIDATION)
        context = replace(context, validation=samples)
        stand_in = f" The server has no validation data of its own: {len(samples)} clean test samples stand in for it."
    words = (
        f"The attack goes on for two more rounds from the poisoned model; judged is the second: {malicious} malicious "
        f"updates of {clients}{f', {lost} more with NaN or Inf' if lost else ''}. Every method has its shipped settings and is "
        "told the true number of malicious updates where it wants to know. The attack was made for the configured server: "
        f"against another, attackers would craft other updates.{stand_in}"
    )
    parts = (
        text(words),
        picture(draw(updates_CD, poisoned_C), "left: values of the updates; right: one point a client"),
        text("Detectors: what they flag, and how well their scores separate (AUC 0.5 = not at all, 1 = perfectly)."),
        _detectors(federation, updates_CD, poisoned_C, context),
        text(
            "Aggregators: the attackers' share of what each rule uses (kept rows count the same, coordinate rules count the "
            "values that survive). What comes of it over some rounds stands under `What would have stopped it`."
        ),
        _aggregators(federation, updates_CD, weights_C, poisoned_C),
    )
    return Section(title, parts)


def _detectors(federation: Federation, updates_CD: Tensor, poisoned_C: Tensor, context: ServerContext) -> str:
    malicious = int(poisoned_C.sum())
    rows = []
    for label, defense in panel("defense", malicious, federation.experiment.defenses).items():
        if isinstance(defense, Defense) and defense.at_clients:
            continue
        try:
            if isinstance(defense, str):
                raise ConfigError(defense)
            one = judged_by(defense, updates_CD, poisoned_C, context)
        except ValueError as error:
            rows.append([label, None, None, None, None, None, str(error)])
            continue
        rates = (one.get(f"defense/{name}") for name in ("false_alarm_rate", "missed_alarm_rate", "roc_auc"))
        caught = f"{one['caught']} of {malicious}" if "caught" in one else None
        rows.append([label, one.get("flagged"), caught, *rates, one["note"]])
    return table(["defense", "flagged", "malicious caught", "false alarms", "missed alarms", "AUC", ""], rows)


def _aggregators(federation: Federation, updates_CD: Tensor, weights_C: Tensor, poisoned_C: Tensor) -> str:
    experiment = federation.experiment
    own = {experiment.aggregator.name: experiment.aggregator}
    rows: list[list[object]] = []
    for label, rule in panel("aggregator", int(poisoned_C.sum()), own).items():
        try:
            if isinstance(rule, str):
                raise ConfigError(rule)
            rows.append([label, _share(federation, rule, updates_CD, weights_C, poisoned_C), ""])
        except ValueError as error:
            rows.append([label, None, str(error)])
    share = float(poisoned_C.double().mean())
    return table(["aggregator", f"attackers' share (by number: {share:.3g})", ""], rows)


def _share(
    federation: Federation, rule: Aggregator, updates_CD: Tensor, weights_C: Tensor, poisoned_C: Tensor
) -> float:
    """The attackers' share of what a rule uses."""
    past, rule = federation.past(), rule.resolved(len(updates_CD))
    aggregate = rule(updates_CD, weights_C, past=past)
    return float(rule.influence(updates_CD, weights_C, aggregate, past=past)[poisoned_C].sum())


def draw(updates_CD: Tensor, poisoned_C: Tensor) -> Figure:
    """Values of benign and malicious updates, and norm and direction of every client's."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = {"benign": (~poisoned_C, CLEAN), "malicious": (poisoned_C, POISONED)}
    values = {}
    for name, (rows_C, _) in groups.items():
        every = updates_CD[rows_C].flatten()
        values[name] = every[:: max(1, len(every) // VALUES)]
    edges, found = densities(values)
    norms_C = updates_CD.norm(dim=1).cpu()
    cosines_C = torch.cosine_similarity(updates_CD, updates_CD.sum(0) - updates_CD, dim=1).cpu()
    for name, (rows_C, color) in groups.items():
        chosen_C = rows_C.cpu()
        left.stairs(found[name].numpy(), edges.numpy(), color=color, label=name)
        right.scatter(norms_C[chosen_C].numpy(), cosines_C[chosen_C].numpy(), s=18, color=color, alpha=0.7, label=name)
    left.set(title="values of the updates", yscale="log", ylabel="density")
    left.locator_params(axis="x", nbins=5)
    right.set(title="clients", xlabel="norm of the update", ylabel="cosine with the sum of all others", xscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    return figure
