"""What a search came to, told where people look for it: on the page of its run, on a page of its own, in Optuna's study."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run

from fl_lightning import tracking
from fl_lightning.analysis import SCRIPTED, Section, analyze, page, table, text, widget
from fl_lightning.config import Experiment
from fl_lightning.search._pictures import moving_pictures
from fl_lightning.search._space import shown

if TYPE_CHECKING:
    from fl_lightning.search._sweep import SweepOutcome

__all__ = ["tell"]

log = logging.getLogger("fl_lightning")

BEST = "fl.best."
"""Prefix of the tags that hold the winner's settings: parameters of MLflow cannot change when a search goes on."""

COMPARED = 5
"""Trials that a link shows side by side."""


def tell(store: MlflowClient, study: optuna.Study, experiment: Experiment, outcome: "SweepOutcome") -> None:
    """Write down what a finished search came to.

    Args:
        store: client of the tracking store.
        study: the search.
        experiment: what was searched.
        outcome: what came out.
    """
    run = store.get_run(outcome.run_id)
    best = {f"{BEST}{path}": str(value) for path, value in outcome.winner.items()}
    for stale in {tag for tag in run.data.tags if tag.startswith(BEST)} - best.keys():
        store.delete_tag(outcome.run_id, stale)
    for tag, value in best.items():
        store.set_tag(outcome.run_id, tag, value[:500])
    tracking.rename(store, outcome.run_id, title(experiment, outcome))
    tracking.describe(store, outcome.run_id, experiment, *in_words(run, experiment, outcome))
    store.log_text(outcome.run_id, search_page(study, experiment, outcome, run), "search.html")
    if outcome.registered_model and not experiment.fast:
        _report(store, outcome)
    _note(study, f"{verdict(experiment, outcome)}\n\nIn MLflow: {tracking.run_link(run)}")


def title(experiment: Experiment, outcome: "SweepOutcome") -> str:
    """Name of the run of a finished search: what its winner is worth on unseen seeds stands on top of every page."""
    figure = outcome.confirmed[experiment.sweep.metrics[0]].mean
    return f"search {figure:.4f}: {tracking.registered_name(experiment)}"


def _report(store: MlflowClient, outcome: "SweepOutcome") -> None:
    """The parts of the report about the winner that train nothing, beside the search and beside the winner's run."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = analyze(str(outcome.registered_model), out=Path(folder) / "analysis.html", trusted=True, quick=True)
        except Exception as error:  # a search of hours does not fail at its end for a report
            log.warning("no report about %s: %s", outcome.registered_model, error)
            return
        store.log_artifact(outcome.run_id, str(file))


def verdict(experiment: Experiment, outcome: "SweepOutcome") -> str:
    """What the winner is worth on unseen seeds, and whether it was worth the search."""
    metrics, seeds = experiment.sweep.metrics, len(experiment.sweep.confirm_seeds)
    figures = ", ".join(f"`{name}` **{outcome.confirmed[name]}**" for name in metrics)
    before = ", ".join(str(outcome.default[name]) for name in metrics)
    return (
        f"The winner's {figures} on {seeds} unseen seeds; the configured {outcome.what} has {before} on the same: "
        f"{outcome.verdict} (paired difference {outcome.gain})."
    )


def in_words(run: Run, experiment: Experiment, outcome: "SweepOutcome") -> Iterator[str]:
    """The search in Markdown: what it came to first, then where to look closer."""
    yield verdict(experiment, outcome)
    winner = next((row for row in outcome.trials if row["changes"] == outcome.winner), None)
    settings = ", ".join(f"`{path}` = {shown(value)}" for path, value in outcome.winner.items())
    if winner is not None:
        number = f"[#{winner['number']}]({_link(run, winner)})"
        figures = ", ".join(shown(value) for value in winner["values"] or ())
        yield f"Winner: trial {number} with {settings}; in the search it had {figures}, which is optimistic."
    if behind := [f"`{one.arm}` by {one.behind}" for one in outcome.runners_up if one.behind]:
        yield f"Behind the winner on the unseen seeds: {', '.join(behind)}."
    if outcome.untried:
        yield f"Never tried, for want of time: {', '.join(outcome.untried)}."
    first = [row for row in outcome.trials if row["run_id"]][:COMPARED]
    links = [f"[all runs]({tracking.below_link(run, '')})"]
    if len(first) > 1:
        links.append(f"[the best {len(first)} side by side]({_side_by_side(run, first)})")
    if outcome.registered_model:
        links.append(f"poisoned model `{outcome.registered_model}`")
        links.append("the report about it: `analysis.html`; `fl-lightning models analyze` makes the whole of it")
    yield f"Look at: {', '.join(links)}; pictures that zoom: `search.html` among the artifacts."


def search_page(study: optuna.Study, experiment: Experiment, outcome: "SweepOutcome", run: Run) -> str:
    """The search on one HTML page: verdict, trials, and Optuna's pictures, which answer to the mouse."""
    metrics = experiment.sweep.metrics
    paths = list(dict.fromkeys(path for row in outcome.trials for path in row["changes"]))
    rows = [
        [
            f"#{row['number']}",
            *(row["values"] or [None] * len(metrics)),
            _state(row),
            *(_cell(row["changes"].get(path)) for path in paths),
        ]
        for row in outcome.trials
    ]
    sections = [
        Section("What came out", (text(verdict(experiment, outcome)), text(_again(run)))),
        Section("Trials", (table(["trial", *metrics, "state", *paths], rows),)),
    ]
    if behind := [one for one in outcome.runners_up if one.behind]:
        head = ["runner-up", "trials", f"{metrics[0]} in the search", *metrics, "behind the winner by"]
        body = [
            [one.arm, one.trials, one.searched, *(str(one.confirmed[name]) for name in metrics), str(one.behind)]
            for one in behind
        ]
        sections.append(Section("Runners-up on the unseen seeds", (table(head, body),)))
    sections += [Section(title, (widget(html),)) for title, html in moving_pictures(study, metrics)]
    return page(f"Search: {tracking.registered_name(experiment)}", sections, SCRIPTED)


def _again(run: Run) -> str:
    command = run.data.tags.get("fl.command")
    return f"MLflow run `{run.info.run_id}`" + (f", made by `{command}`." if command else ".")


def _state(row: dict[str, Any]) -> str:
    return str(row["state"]) if row["feasible"] else "breaks a constraint"


def _cell(value: Any) -> Any:
    return shown(value) if isinstance(value, list) else value


def _link(run: Run, row: dict[str, Any]) -> str:
    return tracking.run_link(run, "").replace(run.info.run_id, row["run_id"])


def _side_by_side(run: Run, rows: Sequence[dict[str, Any]]) -> str:
    return tracking.comparison_link([row["run_id"] for row in rows], run.info.experiment_id, "")


def _note(study: optuna.Study, words: str) -> None:
    """What Optuna's dashboard shows beside the study: as its note where it is installed, and as an attribute everywhere."""
    study.set_user_attr("what came out", words)
    if find_spec("optuna_dashboard"):
        from optuna_dashboard import save_note

        save_note(study, words)
