"""The configuration of an experiment: load, override, validate, dump.

An `Experiment` is built from YAML or a mapping. A string in a slot names `configs/<slot>/<string>.yaml`, a mapping stands
for itself, `path=value` overrides come last. Everything that can be known without data is checked here.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fl_lightning.aggregators import Aggregator, Mean
from fl_lightning.attacks import Attack
from fl_lightning.clients import Client, Sgd
from fl_lightning.config._combined import combined
from fl_lightning.config._settings import Evaluation, Seed, Stop, SweepSettings, Tracking
from fl_lightning.data import Data
from fl_lightning.defenses import Defense
from fl_lightning.engines import Engine, TrainerSettings, Vectorized
from fl_lightning.errors import ConfigError, errors_under, excerpt, explain, suggest
from fl_lightning.inputs import read_yaml_file, read_yaml_text, write_yaml
from fl_lightning.models import Mlp, Model, SampleLoss
from fl_lightning.participation import Full, Participation
from fl_lightning.partition import Degree, Partition
from fl_lightning.paths import config_names, find_config, is_file
from fl_lightning.registry import Label, Slot, foreign, named_config, no_imports, number_check, to_plain
from fl_lightning.server import Server

FAST_ROUNDS, FAST_TRIALS = 2, 3


ASIDE = ("paper", "sweep", "tracking")
"""Settings that no figure of a run depends on."""


class Experiment(BaseModel):
    """A complete experiment; see the canonical one in `configs/experiment/mnist.yaml`.

    Attributes:
        seed: everything random follows from it.
        seeds: several runs under one parent, one a seed; empty: one run with `seed`.
        rounds: communication rounds.
        loss: what clients, attackers and defenses measure with; None: the plain one that fits model and data.
        fast: synthetic data of the same shapes (set by `--fast`).
        stop: a figure that ends the run before its last round; None: all rounds are run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    seed: Seed = 0
    seeds: tuple[Seed, ...] = ()
    rounds: int = Field(default=30, ge=1, le=1_000_000)
    fast: bool = False
    paper: str | None = Field(default=None, max_length=250)
    data: Annotated[Data, Slot("data")]
    partition: Annotated[Partition, Slot("partition")] = Field(
        default_factory=lambda: Degree(clients=50, p=0.5, samples_per_client=600)
    )
    participation: Annotated[Participation, Slot("participation")] = Field(default_factory=Full)
    model: Annotated[Model, Slot("model")] = Field(default_factory=Mlp)
    loss: Annotated[SampleLoss, Slot("loss")] | None = None
    client: Client = Field(default_factory=Client)
    attack: Annotated[Attack, Slot("attack")] | None = None
    defenses: dict[Label, Annotated[Defense, Slot("defense")]] = Field(default_factory=dict)
    aggregator: Annotated[Aggregator, Slot("aggregator")] = Field(default_factory=Mean)
    server: Server = Field(default_factory=Server)
    engine: Annotated[Engine, Slot("engine")] = Field(default_factory=Vectorized)
    trainer: TrainerSettings = Field(default_factory=TrainerSettings)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    stop: Stop | None = None
    tracking: Tracking = Field(default_factory=Tracking)
    sweep: SweepSettings = Field(default_factory=SweepSettings)

    _numbers = number_check()

    @field_validator("client", "sweep", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        slot = str(info.field_name)
        settings = named_config(slot, value)
        if settings is None:
            raise ConfigError(f"unknown {slot} {excerpt(value)}; {suggest(value, config_names(slot))}")
        return settings

    @model_validator(mode="after")
    def _possible(self) -> "Experiment":
        """Refuse combinations that cannot run."""
        if isinstance(self.partition.clients, int):
            self.check_clients(self.partition.clients)
        if self.evaluation.effect:
            self._check_effect()
        if self.evaluation.worst and self.attack:
            raise ConfigError(
                "tries attacks of its own, beside a run without any: set attack to null", "evaluation.worst"
            )
        if self.evaluation.worst and not self.participation.malicious:
            raise ConfigError(
                "needs malicious clients for its attacks: set participation.malicious", "evaluation.worst"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must differ, got {list(self.seeds)}", "seeds")
        return self

    def check_clients(self, n_clients: int) -> None:
        """Settle what depends on the number of clients; of `all` clients it is known with the data only.

        Raises:
            ConfigError: participation, aggregator or a defense cannot work with so many.
        """
        with _at("participation"):
            self.participation.check(n_clients)
        per_round, validation = self.participation.per_round(n_clients), self.data.validation > 0
        # `n_byzantine: auto` becomes a number here, so that attacks, defenses and what is tracked see one
        self.__dict__["aggregator"] = self.aggregator.resolved(per_round)
        self.__dict__["defenses"] = {label: one.resolved(per_round) for label, one in self.defenses.items()}
        with _at("aggregator"):
            self.aggregator.check(per_round)
            if self.aggregator.needs_samples and not validation:
                raise ConfigError(
                    f"{self.aggregator.name} needs samples at the server: set data.validation, such as 100"
                )
        for label, defense in self.defenses.items():
            with _at(f"defenses.{label}"):
                defense.check(self.aggregator, validation=validation)
                defense.check_rows(per_round)

    @property
    def planned_rounds(self) -> int:
        """All rounds: those in which the schedule may attack, and the clean ones of `evaluation.after`."""
        return self.rounds + self.evaluation.after

    def _check_effect(self) -> None:
        if not self.evaluation.twin:
            raise ConfigError("needs the attack-free twin: set evaluation.twin to true", "evaluation.effect")
        optimizer = self.client.optimizer
        if not isinstance(optimizer, Sgd) or optimizer.momentum or optimizer.weight_decay:
            settings = ", ".join(f"{key}={value}" for key, value in optimizer.to_dict().items())
            raise ConfigError(
                f"the prediction is that of sgd without momentum and weight decay, got {settings}", "evaluation.effect"
            )
        if self.client.scheduler is not None and self.client.scheduler.per == "round":
            raise ConfigError(
                "the prediction has one learning rate a round: set client.scheduler.per to run", "evaluation.effect"
            )
        if self.server.optimizer != "sgd":
            raise ConfigError(
                f"the prediction is that of server.optimizer sgd, got {self.server.optimizer}", "evaluation.effect"
            )

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain values; `load` makes the same experiment from it."""
        plain = {name: to_plain(getattr(self, name)) for name in type(self).model_fields}
        if self.loss is None:  # as configurations were before a loss could be chosen
            del plain["loss"]
        return plain

    @property
    def combined(self) -> tuple[type, ...]:
        """Methods that several of its settings make together."""
        return combined(self)

    def override(self, changes: Mapping[str, Any]) -> "Experiment":
        """A newly validated experiment with dotted paths changed: `{"attack.boost": 5.0}`.

        Raises:
            ConfigError: a path that does not exist, or a value that does not validate.
        """
        tree = self.to_dict()
        for path, value in sorted(changes.items(), key=_components_first):
            _set(tree, path, value)
        return load(tree)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Experiment":
        """A newly validated experiment with fields replaced; pydantic's own copy would take any value unseen.

        Raises:
            ConfigError: a field that does not exist, or a value that does not validate.
        """
        return _validated({name: getattr(self, name) for name in type(self).model_fields} | dict(update or {}))

    def faster(self) -> "Experiment":
        """The same experiment on synthetic data, with few rounds and trials: to see that it runs at all."""
        data, clients = self.data.synthetic(), self.partition.clients
        if not isinstance(clients, int):
            clients = max(1, len(data.owner_names))
        cap = max(1, len(data.train) // clients)
        samples = min(cap, self.partition.samples_per_client or cap)
        sweep = replace(self.sweep, trials=min(self.sweep.trials, FAST_TRIALS), confirm_seeds=(1001,))
        return self.model_copy(
            update={
                "fast": True,
                "rounds": min(self.rounds, FAST_ROUNDS),
                "partition": replace(self.partition, samples_per_client=samples),
                "sweep": sweep,
            }
        )

    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the resolved configuration."""
        return _hash(self.to_dict())

    def fingerprint(self, plugins: Mapping[str, str] | None = None) -> str:
        """Like `digest`, of what the figures of a run depend on: not of how it is tracked, or what a sweep would do with it.

        Args:
            plugins: versions of foreign components, as a run recorded them; None: those of today.
        """
        tree = {name: value for name, value in self.to_dict().items() if name not in ASIDE}
        versions = foreign(self) if plugins is None else dict(plugins)
        return _hash(tree | {"plugins": versions} if versions else tree)


def _hash(tree: Mapping[str, Any]) -> str:
    if tree.get("stop", True) is None:  # came later: without it, an experiment is what it was before
        tree = {name: value for name, value in tree.items() if name != "stop"}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Errors inside, also of plain checks, are those of the configuration at `path`."""
    with errors_under(path):
        try:
            yield
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from the name of a file in `configs/experiment/`, a path to a YAML file, or a mapping.

    Args:
        source: where from.
        overrides: `path=value` strings; values are YAML.

    Raises:
        ConfigError: with the path, the value received and what would be valid.
    """
    tree = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_yaml("experiment", str(source))
    defaults: dict[str, Any] = {}
    with suppress(ValidationError, ConfigError):  # the changes may be what makes it valid
        defaults = Experiment.model_validate(tree).to_dict() if overrides else {}
    for path, value in sorted(parse_changes(overrides), key=_components_first):
        _set(tree, path, value, defaults)
    return _validated(tree)


def parse_changes(words: Sequence[str]) -> list[tuple[str, Any]]:
    """`path=value` strings as paths and values, which are YAML.

    Raises:
        ConfigError: one that is not written so.
    """
    changes = []
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"an override is written path=value, got {excerpt(word)}")
        changes.append((path.strip(), read_yaml_text(text, path.strip())))
    return changes


def _validated(tree: Mapping[str, Any]) -> Experiment:
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        explain(error, Experiment)


def _components_first(change: tuple[str, Any]) -> tuple[int, bool]:
    """Where a change comes among others: what chooses a component stands before what sets its fields."""
    path = change[0].split(".")
    return len(path), path[-1] != "name"


def dump(experiment: Experiment) -> str:
    """The resolved configuration as YAML: `load` reads it back to an equal experiment."""
    return write_yaml(experiment.to_dict())


def load_text(text: str, where: str, trusted: bool = False) -> Experiment:
    """An experiment from what `dump` wrote, whoever kept it since.

    Args:
        text: the YAML.
        where: what holds it, for messages.
        trusted: whether modules that `module:Class` names are imported, which executes them.

    Raises:
        ConfigError: it is not the configuration of an experiment.
    """
    tree = read_yaml_text(text, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"must hold a mapping, got {type(tree).__name__}", where)
    with errors_under(where), nullcontext() if trusted else no_imports():
        return load(tree)


def experiment_names() -> list[str]:
    """Names of the experiments in the user's configurations and the shipped ones."""
    return config_names("experiment")


def read_yaml(kind: str, source: str) -> dict[str, Any]:
    """The mapping in `<kind>/<source>.yaml` of the user's or the shipped configurations, or in the file at the path `source`.

    Raises:
        ConfigError: no such file, or no mapping in it.
    """
    path = find_config(kind, source) or Path(source)
    if not is_file(path):
        raise ConfigError(f"no {kind} {excerpt(source)}, and no such file; {suggest(source, config_names(kind))}")
    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping, got {type(tree).__name__}")
    return tree


def _set(tree: dict[str, Any], path: str, value: Any, defaults: Mapping[str, Any] | None = None) -> None:
    """Set a dotted path in a nested mapping; a name on the way is first replaced by the configuration that it names.

    A component that the tree leaves out is taken from `defaults`, unless the path gives it another name.
    """
    *parents, last = path.split(".")
    node, known = tree, {} if defaults is None or last == "name" else defaults
    for depth, key in enumerate(parents):
        child = node.get(key)
        known = known.get(key) or {}
        if isinstance(child, str):
            slot = "defense" if depth and parents[depth - 1] == "defenses" else key
            child = named_config(slot, child) or {"name": child}
        if child is None:
            child = copy.deepcopy(known)
        if not isinstance(child, dict):
            raise ConfigError(f"{'.'.join(parents[: depth + 1])} is {excerpt(child)}, it has no key {last!r}", path)
        node[key] = child
        node = child
    if path == "participation":
        value = _with_attackers(value, node.get(path) or known.get(path))
    node[last] = _copied(value)


def _copied(value: Any) -> Any:
    """Plain containers anew, so that a later change inside of them does not reach what was handed in; instances as they are."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _with_attackers(participation: Any, before: Any) -> Any:
    """A new participation; the malicious clients and their schedule stay those of before where it says nothing of them."""
    if not isinstance(before, Mapping) or not before.get("malicious"):
        return participation
    chosen = {"name": participation} if isinstance(participation, str) else participation
    if not isinstance(chosen, Mapping) or "malicious" in chosen:
        return participation
    return {key: before[key] for key in ("malicious", "schedule") if key in before} | dict(chosen)
