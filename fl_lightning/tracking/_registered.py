"""The MLflow model registry: poisoned models with their figures, found again, compared, and handed on.

A version never needs code from anywhere: its weights are safetensors, its architecture follows from its configuration.
"""

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fl_lightning.config import Experiment, dump, load_text
from fl_lightning.errors import ConfigError, excerpt, suggest
from fl_lightning.models import count_parameters
from fl_lightning.registry import PluginError, no_imports
from fl_lightning.tracking._card import about_name, card_text, threat_sentence
from fl_lightning.tracking._example import numbers_in, shape_and_types, zeros
from fl_lightning.tracking._store import as_current, clean_name, client, pages, registered_name

__all__ = ["Registered", "card", "compare", "export", "find", "register", "registered_models", "threat_model"]

VERSIONS = "mlflow.modelVersions"
"""Tag of a logged model in which MLflow's pages look for the versions made of it."""

CARD = 4900
"""Characters of a version's description that MLflow keeps, less some."""

STEALTHY = 0.5
"""The least attack success of a version that can be called stealthiest."""


class Logged(NamedTuple):
    """A logged model.

    Attributes:
        uri: where MLflow keeps it.
        figures: last value of every metric.
    """

    uri: str
    figures: Mapping[str, float]


def register(
    store: MlflowClient,
    experiment: Experiment,
    run_id: str,
    model: Logged,
    twin: Logged | None = None,
    inputs: tuple[Any, int] = ((), 0),
) -> str | None:
    """Put a poisoned model, and its attack-free twin where there is one, into the registry and move the aliases.

    `strongest` is the version with the highest attack success, `stealthiest` the one whose updates looked most like the
    others' (`stealth/cosine`) among those with a success of at least 0.5. Twins have a name of their own,
    `<data>-<model>-clean`, so that the latest version of a poisoned model's name is a poisoned one; `clean` is the most
    accurate of them. Names and versions say in their description and by the tag `poisoned` what they are.

    Args:
        store: client of the tracking store.
        experiment: what the model was made by.
        run_id: its run.
        model: the poisoned model.
        twin: the attack-free twin's.
        inputs: shape of one input, and the number of classes.

    Returns:
        `name/version`, or None when a stronger version is there already and `register` is not `always`.
    """
    name = registered_name(experiment)
    known = [found for found in store.search_model_versions(f"run_id='{run_id}'") if "twin_of" not in found.tags]
    if known:  # this run was killed after it had registered its model
        return f"{known[0].name}/{known[0].version}"
    success = model.figures.get("attack/success")
    if success is None:
        return None
    stronger = success > _figure(store, name, "strongest", "attack/success")
    if not stronger and experiment.tracking.register != "always":
        return None
    attack = experiment.attack.name if experiment.attack else "none"
    tags = {"attack": attack, "weights": "final", "poisoned": "true"}
    version = _new_version(store, name, model.uri, _tags(experiment, run_id, model.figures) | tags, experiment, inputs)
    if stronger:
        store.set_registered_model_alias(name, "strongest", version)
    cosine = model.figures.get("stealth/cosine", -1.0)
    if success >= STEALTHY and cosine > _figure(store, name, "stealthiest", "stealth/cosine"):
        store.set_registered_model_alias(name, "stealthiest", version)
    if twin:
        clean = clean_name(experiment)
        accuracy = twin.figures.get("global/accuracy", 0.0)
        better = accuracy > _figure(store, clean, "clean", "global/accuracy")
        own = {"attack": "none", "weights": "clean_twin", "poisoned": "false", "twin_of": f"{name}/{version}"}
        tags = _tags(experiment, run_id, twin.figures) | own
        number_of_twin = _new_version(store, clean, twin.uri, tags, experiment, inputs)
        store.set_model_version_tag(name, str(version), "clean_twin", f"{clean}/{number_of_twin}")
        if better:
            store.set_registered_model_alias(clean, "clean", number_of_twin)
    return f"{name}/{version}"


def _new_version(
    store: MlflowClient, name: str, uri: str, tags: dict[str, str], experiment: Experiment, inputs: tuple[Any, int]
) -> str:
    """Register a logged model with its model card; returns its version.

    Not `mlflow.register_model`: that registers wherever MLflow's current server is, which is the user's affair.
    """
    poisoned = tags["poisoned"]
    try:
        store.create_registered_model(name, {"poisoned": poisoned}, about_name(experiment, poisoned == "true"))
    except MlflowException as error:
        if "ALREADY_EXISTS" not in str(error.error_code):
            raise
    model_id, run_id = uri.removeprefix("models:/"), tags["run_id"]
    with as_current(store.tracking_uri):
        version = str(store.create_model_version(name, uri, run_id, tags, model_id=model_id).version)
    shape, classes = inputs
    text = card_text(f"{name}/{version}", experiment, tags, shape, classes)
    store.update_model_version(name, version, text[:CARD])
    known = json.loads(store.get_logged_model(model_id).tags.get(VERSIONS, "[]"))
    store.set_logged_model_tags(model_id, {VERSIONS: json.dumps([*known, {"name": name, "version": version}])})
    return version


def _figure(store: MlflowClient, name: str, alias: str, figure: str) -> float:
    """What the version that holds an alias was measured at; minus infinity where there is none."""
    try:
        value = number(store.get_model_version_by_alias(name, alias).tags.get(figure))
    except MlflowException:
        return -math.inf
    return -math.inf if value is None else value


def _tags(experiment: Experiment, run_id: str, figures: Mapping[str, float]) -> dict[str, str]:
    return {
        "aggregator": experiment.aggregator.name,
        "defenses": ",".join(experiment.defenses) or "none",
        "data": experiment.data.name,
        "model": experiment.model.name,
        "seed": str(experiment.seed),
        "config": experiment.digest(),
        "run_id": run_id,
        **{key: f"{value:.6g}" for key, value in figures.items() if not key.startswith("time/")},
    }


def registered_models(attack: str | None = None, aggregator: str | None = None) -> list[ModelVersion]:
    """All registered versions with their aliases and figures as tags, the most successful first."""
    store = client(only_read=True)
    wanted = {key: value for key, value in (("attack", attack), ("aggregator", aggregator)) if value is not None}
    aliases: dict[tuple[str, str], list[str]] = {}
    for model in pages(store.search_registered_models):
        for alias, version in model.aliases.items():
            aliases.setdefault((model.name, str(version)), []).append(alias)
    versions = []
    for version in pages(store.search_model_versions):
        version.aliases = sorted(aliases.get((version.name, str(version.version)), []))
        if wanted.items() <= version.tags.items():
            versions.append(version)
    return sorted(versions, key=lambda version: -(number(version.tags.get("attack/success")) or 0.0))


def card(model: "Registered", traced: bool = True) -> str:
    """The model card, in Markdown; `traced`: whether its architecture is exported with it."""
    tags = {"run_id": str(model.version.run_id)} | model.version.tags
    return card_text(model.title, model.experiment, tags, model.shape, model.classes, traced)


def threat_model(model: "Registered") -> str:
    """Who attacked, how, knowing what, and after what; in Markdown."""
    return threat_sentence(model.experiment, model.version.tags)


def number(text: str | None) -> float | None:
    """A figure that was kept as a tag; None where somebody has put anything else there."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Registered:
    """A registered model.

    Attributes:
        version: the entry in the registry, with its figures as tags.
        experiment: the configuration that made it.
        network: the network, in eval mode.
        shape: shape of one input, or of each by name.
        classes: number of classes K.
        types: of the numbers of one input, or of each by name.
    """

    version: ModelVersion
    experiment: Experiment
    network: nn.Module
    shape: Any
    classes: int
    types: Any = torch.float32

    @property
    def title(self) -> str:
        """`name/version`."""
        return f"{self.version.name}/{self.version.version}"

    @property
    def figures(self) -> dict[str, float]:
        """Its measured figures."""
        figures = {name: number(value) for name, value in self.version.tags.items() if "/" in name}
        return {name: value for name, value in figures.items() if value is not None}


def find(reference: str, trusted: bool = False) -> Registered:
    """A registered model by `NAME` (its strongest version), `NAME@ALIAS` or `NAME/VERSION`.

    Args:
        reference: which one.
        trusted: whether modules that its configuration names as `module:Class` are imported, which executes them. Nothing else
            of a model can carry code.

    Raises:
        ConfigError: no such model, alias or version.
    """
    store = client(only_read=True)
    reference = reference.removeprefix("models:/")
    name, _, version = reference.partition("/")
    name, _, alias = name.partition("@")
    try:
        found = store.get_model_version(name, version) if version else _by_alias(store, name, alias)
    except MlflowException:
        names = sorted({model.name for model in pages(store.search_registered_models)})
        if name not in names:
            raise ConfigError(f"no registered model {excerpt(name)}; {suggest(name, names)}") from None
        what = f"version {version}" if version else f"alias {alias or 'strongest'!r}"
        raise ConfigError(f"{name} has no {what}") from None
    try:
        return _built(store, found, trusted)
    except PluginError as error:
        raise error.under(f"{found.name}/{found.version}") from None
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{found.name}/{found.version} was not made by this package, or is damaged: {reason}"
        ) from None


def _by_alias(store: MlflowClient, name: str, alias: str) -> ModelVersion:
    """The version with an alias; without one the strongest, or of clean models the most accurate.

    `NAME@clean` of a poisoned model is the attack-free twin of its strongest version, which has another name.
    """
    aliases = store.get_registered_model(name).aliases
    if not alias:
        alias = "clean" if set(aliases) == {"clean"} else "strongest"
    if alias == "clean" and alias not in aliases and "strongest" in aliases:
        twin = store.get_model_version_by_alias(name, "strongest").tags.get("clean_twin", "")
        other, _, version = twin.partition("/")
        if version:
            return store.get_model_version(other, version)
    return store.get_model_version_by_alias(name, alias)


BROKEN: tuple[type[Exception], ...] = (
    MlflowException,
    SafetensorError,
    OSError,
    RuntimeError,
    ValueError,
)
BROKEN += (LookupError, TypeError, ArithmeticError, MemoryError)
"""What reading a stranger's or a damaged model may end in."""

WEIGHTS = ("final", "clean_twin")
"""Files with weights that a version may name; anything else could lead out of its run."""


MAX_INPUT = 10**8
"""Numbers in one input of a model."""


def _built(store: MlflowClient, version: ModelVersion, trusted: bool) -> Registered:
    """The network of a version, from the configuration and the weights that its run has kept."""
    file = version.tags.get("weights", "final")
    if file not in WEIGHTS:
        raise ValueError(f"its tag weights is {excerpt(file)}, not one of {', '.join(WEIGHTS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = store.download_artifacts(str(version.run_id), f"weights/{file}.safetensors", folder)
        with safe_open(path, "pt") as opened:
            about = opened.metadata() or {}
        weights = load_file(path)
    with nullcontext() if trusted else no_imports():
        return _network(version, about, weights, trusted)


def _network(
    version: ModelVersion, about: dict[str, str], weights: dict[str, torch.Tensor], trusted: bool
) -> Registered:
    """The network that a configuration describes, with its weights."""
    experiment = load_text(about["config"], f"{version.name}/{version.version}", trusted)
    (shape, types), classes = shape_and_types(about), int(about["classes"])
    there = sum(part.numel() for part in weights.values())
    expected = count_parameters(experiment.model, shape, classes)
    if not 0 < numbers_in(shape) <= MAX_INPUT or (expected or 0) > there:
        raise ValueError(
            f"its configuration asks for {expected} parameters and inputs of {shape}, it has {there} numbers"
        )
    network = experiment.model.network(shape, classes)
    network.load_state_dict(weights)
    return Registered(version, experiment, network.eval(), shape, classes, types)


def export(model: Registered, folder: Path) -> list[Path]:
    """Write a model so that plain torch loads it: weights, architecture, configuration and a model card.

    Args:
        model: what `find` gave.
        folder: made if need be; nothing in it is overwritten.

    Returns:
        The files written.

    Raises:
        ConfigError: the folder holds files already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: part.contiguous().clone() for name, part in model.network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    batch = {0: torch.export.Dim("batch")}
    named = isinstance(model.shape, Mapping)
    dynamic = dict.fromkeys(model.shape, batch) if named else batch
    try:
        with warnings.catch_warnings():  # torch warns of what cuDNN's weights are called, which nobody can change
            warnings.filterwarnings("ignore", message="The tensor attributes? .* (was|were) assigned during export")
            program = torch.export.export(model.network, (zeros(model.shape, model.types),), dynamic_shapes=(dynamic,))
        torch.export.save(program, folder / "architecture.pt2")
    except Exception as error:  # whatever a module does that cannot be traced, such as packed sequences
        reason = (str(error).splitlines() or [""])[0]
        logging.getLogger("fl_lightning").warning(
            "architecture.pt2 is left out, torch.export cannot follow %s: %s: %s",
            model.experiment.model.name, type(error).__name__, reason[:200],
        )  # fmt: skip
    (folder / "config.yaml").write_text(dump(model.experiment), encoding="utf-8")
    traced = (folder / "architecture.pt2").exists()
    (folder / "README.md").write_text(card(model, traced), encoding="utf-8")
    return sorted(folder.iterdir())


def compare(one: Registered, other: Registered) -> list[tuple[str, float, float, float]]:
    """How far two models of one architecture are apart, by layer and in all.

    Returns:
        Name, L2 distance, distance relative to the first one's norm, and cosine of each parameter tensor; `all` comes last.

    Raises:
        ConfigError: their parameters have different names or shapes.
    """
    parts = [
        {name: part.detach().flatten() for name, part in model.network.named_parameters()} for model in (one, other)
    ]
    shapes = [{name: part.numel() for name, part in own.items()} for own in parts]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"{one.title} and {other.title} have different architectures")
    pairs = [(name, parts[0][name], parts[1][name]) for name in parts[0]]
    pairs.append(("all", torch.cat(list(parts[0].values())), torch.cat(list(parts[1].values()))))
    return [
        (name, float((b - a).norm()), float((b - a).norm() / a.norm()), float(torch.cosine_similarity(a, b, dim=0)))
        for name, a, b in pairs
    ]
