"""How every client trains in a round: `Client`."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from torch import Tensor

from fl_lightning.callbacks import CALLBACKS
from fl_lightning.clients._optimizers import Adam, Optimizer, Sgd
from fl_lightning.errors import ConfigError, suggest
from fl_lightning.registry import Registry, Settings, Slot

REGISTRIES = {
    "optimizer": Registry("optimizer", Optimizer, [Sgd, Adam]),
    "callback": Registry("callback", Callback, CALLBACKS),
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

    def build(self) -> Callback:
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
            return cls(value)
        if isinstance(value, Callback):
            raise ConfigError(f"every client needs its own callback: give {{name: 'module:Class', ...}}, got {value!r}")
        if not isinstance(value, Mapping) or "name" not in value:
            raise ConfigError(f"expected a name or a mapping with the key 'name', got {value!r}")
        return cls(**value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation by `parse`."""
        return core_schema.no_info_plain_validator_function(cls.parse)


class Client(Settings):
    """How every client trains in a round.

    Attributes:
        epochs: local epochs over the client's samples.
        steps: number of local steps instead of epochs; batches go round the data as often as needed.
        batch_size: samples a step; the last batch of an epoch may be smaller.
        optimizer: made afresh every round.
        callbacks: label -> Lightning callback of benign clients, such as `wbc: {name: fl_wbc, std: 0.4}`.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: Annotated[Optimizer, Slot("optimizer")] = Field(default_factory=Sgd)
    callbacks: dict[str, CallbackConfig] = Field(default_factory=dict)


def batch_plan(n: int, client: Client, generator: torch.Generator) -> list[Tensor]:
    """Which of a client's `n` samples go into which local step: one int64 index tensor a step.

    Every epoch is a fresh permutation; this plan is the only source of batches, so that engines cannot differ.
    """
    plan: list[Tensor] = []
    epochs = 0
    while len(plan) < client.steps if client.steps else epochs < client.epochs:
        plan.extend(torch.split(torch.randperm(n, generator=generator), client.batch_size))
        epochs += 1
    return plan[: client.steps]
