"""What MLflow's pages show of a run: their addresses, and the description in words."""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from mlflow.entities import Experiment as MlflowExperiment
from mlflow.entities import Run

from fl_lightning.config import Experiment, dump
from fl_lightning.errors import masked
from fl_lightning.paths import tracking_server

__all__ = [
    "below_link",
    "comparison_link",
    "described",
    "experiment_link",
    "experiment_tags",
    "figures_in_words",
    "note",
    "overview_link",
    "run_link",
    "ui_address",
]

NOTE = "mlflow.note.content"
"""Tag in which MLflow keeps the description of a run or an experiment, in Markdown."""

KIND = "mlflow.experimentKind"
"""Tag by which MLflow files an experiment."""

VIEW = "fl_lightning"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment in which MLflow's pages keep a view that is linked by its key."""

PURPOSE = (
    "Attacks on federated learning, and defenses: simulations by fl-lightning on public data. A row that can be unfolded is a "
    "search, a matrix or a run with several seeds. Some searches of this page: `tags.fl.kind = 'study'`, "
    "`tags.fl.attack = 'alie' and metrics.success > 0.5`, `tags.fl.aggregator = 'krum'`."
)
"""Description of the MLflow experiment."""

MODE = "workflowType=machine_learning"
"""MLflow's pages for the training of models; without it they open on those for generative models, which show no run."""

DEFAULT = "http://127.0.0.1:5000"
"""Where `fl-lightning ui` shows the embedded store unless told otherwise."""

SHOWN = ("attack", "aggregator", "defenses")

LONGEST = 7500
"""Characters of a description that MLflow keeps, less some."""

HEADLINES = {"attack/success": "success", "global/accuracy": "accuracy", "global/normalized_cost": "cost"}
"""What is logged a second time without a group: short names for columns and for the order of runs."""


COLUMNS = (*(f"metrics.`{short}`" for short in HEADLINES.values()), *(f"tags.`fl.{slot}`" for slot in SHOWN))
"""Columns of the list of runs; without a view MLflow shows none that holds a figure."""


def ui_address() -> str:
    """Where MLflow's pages are: the tracking server itself, or where `fl-lightning ui` shows the embedded store."""
    uri = tracking_server() or ""
    return masked(uri).rstrip("/") if uri.startswith("http") else DEFAULT


def _base(address: str | None) -> str:
    address = ui_address() if address is None else address
    return f"{address}/" if address else ""


def experiment_link(experiment_id: str, address: str | None = None) -> str:
    """The runs of an MLflow experiment."""
    return f"{_base(address)}#/experiments/{experiment_id}/runs?{MODE}"


def overview_link(experiment: MlflowExperiment, address: str | None = None) -> str:
    """The runs of an MLflow experiment with their figures, where it has the view that shows them."""
    view = f"&viewStateShareKey={VIEW}" if VIEW_TAG in experiment.tags else ""
    return experiment_link(experiment.experiment_id, address) + view


def experiment_tags() -> dict[str, str]:
    """Tags of a new MLflow experiment: what it is for, where MLflow files it, which columns its runs are shown with."""
    return {KIND: "custom_model_development", NOTE: PURPOSE, VIEW_TAG: json.dumps({"selectedColumns": COLUMNS})}


def run_link(run: Run, address: str | None = None) -> str:
    """The page of a run. With an empty address the link works inside of MLflow's pages, wherever they are shown."""
    return f"{_base(address)}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{MODE}"


def below_link(run: Run, address: str | None = None) -> str:
    """The runs under a parent, and no others; those that succeed most first.

    In the order of their creation MLflow would fold them under their parent, and show that one alone.
    """
    query = quote(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    order = f"orderByKey={quote('metrics.`success`')}&orderByAsc=false"
    return f"{experiment_link(run.info.experiment_id, address)}&searchFilter={query}&{order}"


def comparison_link(run_ids: Sequence[str], experiment_id: str, address: str | None = None) -> str:
    """Runs of an MLflow experiment side by side: what differs in their parameters, and their figures."""
    names = quote(json.dumps(list(run_ids), separators=(",", ":")))
    places = quote(json.dumps([experiment_id]))
    return f"{_base(address)}#/compare-runs?runs={names}&experiments={places}&{MODE}"


def described(experiment: Experiment) -> str:
    """Who trains what, and who attacks it, in a sentence."""
    clients, attack = experiment.partition.clients, experiment.attack
    server = " behind ".join([f"`{experiment.aggregator.name}`", *(f"`{name}`" for name in experiment.defenses)])
    synthetic = " (synthetic stand-in)" if experiment.fast else ""
    training = (
        f"`{experiment.model.name}` on `{experiment.data.name}`{synthetic}, {clients} clients, {experiment.rounds} rounds, "
        f"seed {experiment.seed}; aggregator {server}"
    )
    if attack is None:
        return f"No attack: {training}."
    return (
        f"{experiment.participation.malicious} of {clients} clients attack with `{attack.name}` "
        f"(objective `{attack.objective.name}`): {training}."
    )


def figures_in_words(figures: Mapping[str, float]) -> str:
    """The figures that matter most, the first ones that anybody reads.

    Example:
        >>> figures_in_words({"global/accuracy": 0.894, "attack/success": 0.99712, "impact/accuracy_drop": -0.004})
        'Attack success **0.9971**, accuracy **0.8940** (without the attack 0.8900).'
    """
    words = {"attack/success": "attack success", "global/accuracy": "accuracy", "global/normalized_cost": "cost"}
    told = [f"{words[name]} **{figures[name]:.4f}**" for name in words if name in figures]
    if told and {"global/accuracy", "impact/accuracy_drop"} <= figures.keys():
        told[-1] += f" (without the attack {figures['global/accuracy'] + figures['impact/accuracy_drop']:.4f})"
    sentence = ", ".join(told)
    return f"{sentence[:1].upper()}{sentence[1:]}." if told else ""


def note(sentence: str, experiment: Experiment, command: str) -> str:
    """The description of a run: a sentence, how to do it again, and below a rule the whole configuration."""
    again = "The same again, with `config.yaml` from the artifacts:\n\n    fl-lightning run config.yaml"
    made = [f"Made by:\n\n    {command}"] * bool(command)
    text = "\n\n".join([sentence, *made, again, "---", f"```yaml\n{dump(experiment)}```"])
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}\n...\n```\n\nThe rest: `config.yaml`"
