"""How every client trains in a round: `Client`."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, GetCoreSchemaHandler, field_validator
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn

from fl_lightning.callbacks import NAMES
from fl_lightning.clients._optimizers import Adam, Optimizer, Sgd
from fl_lightning.clients._schedulers import Cosine, Milestones, Scheduler, Warmup
from fl_lightning.data import Inputs, Samples
from fl_lightning.errors import ConfigError, errors_under, suggest
from fl_lightning.models import BATCH_NORMS
from fl_lightning.registry import SLOT_KEY, Label, Registry, Settings, Slot, import_class, named_config, plain_fields

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

REGISTRIES = {
    "optimizer": Registry("optimizer", Optimizer, [Sgd, Adam]),
    "scheduler": Registry("scheduler", Scheduler, [Cosine, Milestones, Warmup]),
    "callback": Registry(
        "callback", "lightning.pytorch:Callback", {name: f"fl_lightning.callbacks:{cls}" for name, cls in NAMES.items()}
    ),
}


class CallbackConfig:
    """A Lightning callback by name with its options: `{name: fl_wbc, std: 0.4}`; checked by building it once.

    Raises:
        ConfigError: unknown name or option, or a value that the callback refuses.
    """

    def __init__(self, name: str, **options: Any):
        self.cls = REGISTRIES["callback"][name]
        known = inspect.signature(self.cls).parameters
        for option in options:
            if option not in known:
                raise ConfigError(f"unknown key; {suggest(option, known)}", option)
        self.name = name
        self.options = options
        try:
            self.build()
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None

    def build(self) -> "Callback":
        """A fresh callback."""
        callback: Callback = self.cls(**self.options)
        return callback

    def to_dict(self) -> dict[str, Any]:
        """The mapping that builds it again."""
        return {"name": self.name, **self.options}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallbackConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def parse(cls, value: Any) -> "CallbackConfig":
        """From a name, a mapping, or an instance."""
        if isinstance(value, CallbackConfig):
            return value
        if isinstance(value, str):
            value = named_config("callback", value) or {"name": value}
        if isinstance(value, REGISTRIES["callback"].base):
            raise ConfigError(f"every client needs its own callback: give {{name: 'module:Class', ...}}, got {value!r}")
        if not isinstance(value, Mapping) or "name" not in value:
            raise ConfigError(f"expected a name or a mapping with the key 'name', got {value!r}")
        return cls(**value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation by `parse`."""
        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """A component of the slot `callback`."""
        return {SLOT_KEY: "callback"}


class Client(Settings):
    """How every client trains in a round.

    Attributes:
        epochs: local epochs over the client's samples.
        steps: number of local steps instead of epochs; batches go round the data as often as needed.
        batch_size: samples a step; the last batch of an epoch may be smaller.
        last_batch: what becomes of a smaller last batch of an epoch: `keep` it, `drop` it (unless it is the only one), or
            `merge` it into the one before.
        loop: who does a local step: the `federation`, with loss and optimizer of the configuration, or the `module`: a
            LightningModule's own training step and optimizers, in as many epochs of the shared Trainer.
        optimizer: made afresh every round; a module that trains itself brings its own.
        scheduler: how its learning rate changes over the rounds, or the steps of a round; None: by `optimizer.decay` alone.
        transform: `package.module:function` that every gathered batch of inputs goes through in training, such as an
            augmentation; what it draws at random follows from seed, round and client. Clients then train one by one.
        callbacks: label -> Lightning callback of benign clients, such as `wbc: {name: fl_wbc, std: 0.4}`.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    last_batch: Literal["keep", "drop", "merge"] = "keep"
    loop: Literal["federation", "module"] = "federation"
    optimizer: Annotated[Optimizer, Slot("optimizer")] = Field(default_factory=Sgd)
    scheduler: Annotated[Scheduler, Slot("scheduler")] | None = None
    transform: str | None = None
    callbacks: dict[Label, CallbackConfig] = Field(default_factory=dict)

    @field_validator("transform", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return f"{value.__module__}:{value.__qualname__}" if callable(value) else value

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without `scheduler` and `transform` where there is none, as configurations were before there were any."""
        late = {"scheduler": None, "transform": None}
        return {key: value for key, value in plain_fields(self).items() if value is not None or key not in late}

    def transformed(self) -> Callable[[Inputs], Inputs]:
        """What a batch of inputs goes through.

        Raises:
            ConfigError: there is no such function.
        """
        if self.transform is None:
            return lambda x: x
        with errors_under("client.transform"):
            function: Callable[[Inputs], Inputs] = import_class(self.transform)
        return function

    def optimizer_at(self, round: int, rounds: int | None = None) -> Optimizer:
        """The optimizer with the learning rate of a communication round.

        Args:
            round: from 0.
            rounds: how many are planned; a scheduler over the run needs it.

        Raises:
            ValueError: there is such a scheduler, and it is not known.
        """
        optimizer, scheduler = self.optimizer.at(round), self.scheduler
        if scheduler is None or scheduler.per == "round":
            return optimizer
        if rounds is None:
            raise ValueError(f"the scheduler {scheduler.name} needs to know how many rounds there are")
        return replace(optimizer, lr=optimizer.lr * scheduler.factor(min(round / rounds, 1.0)))

    def factor_at(self, steps: int) -> Callable[[int], float] | None:
        """Step -> factor on the learning rate within a round of so many steps; None where it stays the same."""
        scheduler = self.scheduler
        if scheduler is None or scheduler.per == "run":
            return None
        return lambda step: scheduler.factor(step / steps)


def batch_plan(n: int, client: Client, generator: torch.Generator) -> list[Tensor]:
    """Which of a client's `n` samples go into which local step: one int64 index tensor a step.

    Every epoch is a fresh permutation; this plan is the only source of batches, so that engines cannot differ.
    """
    plan: list[Tensor] = []
    epochs = 0
    while len(plan) < client.steps if client.steps else epochs < client.epochs:
        plan.extend(batches(torch.randperm(n, generator=generator), client))
        epochs += 1
    return plan[: client.steps]


def batches(order: Tensor, client: Client) -> list[Tensor]:
    """One epoch cut into batches.

    Example:
        >>> [part.tolist() for part in batches(torch.arange(5), Client(batch_size=2, last_batch="merge"))]
        [[0, 1], [2, 3, 4]]
    """
    parts = list(torch.split(order, client.batch_size))
    if client.last_batch == "keep" or len(parts) == 1 or len(parts[-1]) == client.batch_size:
        return parts
    if client.last_batch == "drop":
        return parts[:-1]
    return [*parts[:-2], torch.cat(parts[-2:])]


def check_loop(client: Client, network: nn.Module, accumulate: int = 1, clip: float | None = None) -> None:
    """Refuse a loop that would ignore a module's own training, and one that needs such a module where there is none.

    Raises:
        ConfigError: loop and network do not fit each other.
    """
    from lightning.pytorch import LightningModule

    module = next((part for part in network.modules() if isinstance(part, LightningModule)), None)
    if module is not None and client.loop == "federation":
        raise ConfigError(
            f"{type(module).__name__} is a LightningModule: this loop would ignore its training step; set module",
            "client.loop",
        )
    if client.loop == "module" and client.scheduler is not None:
        raise ConfigError("a module that trains itself brings its own schedulers", "client.scheduler")
    if module is None and client.loop == "module":
        raise ConfigError("needs model: {name: lightning, module: ...}; this model has no training step", "client.loop")
    for name, given in (("accumulate", accumulate if accumulate > 1 else None), ("clip", clip)):
        if given is None:
            continue
        if module is None:
            raise ConfigError(f"belongs to client.loop: module, got {given} and loop: {client.loop}", f"trainer.{name}")
        if not module.automatic_optimization:
            what = f"{type(module).__name__} steps by itself (manual optimization), so that it does this by itself, too"
            raise ConfigError(f"{what}, got {given}", f"trainer.{name}")


def check_transform(client: Client, network: nn.Module, samples: Samples) -> None:
    """Refuse a transform whose result the network cannot take, before anything is trained.

    Raises:
        ConfigError: there is no such function, or it fails.
    """
    if client.transform is None:
        return
    function, was = client.transformed(), network.training
    try:
        with torch.no_grad():
            network.eval()(function(samples.x))
    except Exception as error:  # whatever a foreign function raises, or the network for what it gives
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{client.transform} does not fit: {type(error).__name__}: {reason}", "client.transform"
        ) from error
    finally:
        network.train(was)


def check_last_batches(network: nn.Module, samples: Samples, sizes: list[int], client: Client) -> None:
    """Refuse batches of one sample that a network cannot be trained on, such as one with batch normalisation.

    Args:
        network: the architecture; left as it is.
        samples: of which a client's batches are made.
        sizes: number of samples of each client.
        client: how clients train.

    Raises:
        ConfigError: a client has such a batch.
    """
    if not _normalises(network):
        return
    alone = next((who for who, n in enumerate(sizes) if _has_lone(n, client)), None)
    reason = None if alone is None else _refuses_one(network, samples)
    if reason is not None:
        raise ConfigError(
            f"client {alone} has {sizes[alone or 0]} samples, so a batch of one, which batch normalisation cannot "
            f"take ({reason}): set drop or merge"
        )


def merging_lone(client: Client, network: nn.Module, parts: Sequence[Samples]) -> Client:
    """The client's settings for samples whose number nobody could foresee, such as an attacker's dirty ones.

    Where a last batch of one sample is left that batch normalisation cannot take, last batches go into those before them.

    Args:
        client: how clients train.
        network: the architecture; left as it is.
        parts: what each is trained on.
    """
    if not _normalises(network) or not any(_has_lone(len(part), client) for part in parts):
        return client
    if _refuses_one(network, parts[0]) is None:
        return client
    return replace(client, last_batch="merge")


def _normalises(network: nn.Module) -> bool:
    return any(isinstance(module, BATCH_NORMS) for module in network.modules())


def _has_lone(n: int, client: Client) -> bool:
    return any(len(batch) == 1 for batch in batches(torch.arange(n), client))


def _refuses_one(network: nn.Module, samples: Samples) -> str | None:
    """What a network in training says to a single sample; None where it takes it."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(network).train()(samples[:1].x)
    except ValueError as error:
        return str(error)
    return None
