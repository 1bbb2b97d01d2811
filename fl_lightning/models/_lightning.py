"""A LightningModule of the user's own as the client's model."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from fl_lightning.data import Inputs, Named, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Model
from fl_lightning.registry import import_class

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import LightningModule

__all__ = ["Lightning", "UserModule"]


class UserModule(nn.Module):
    """A user's LightningModule seen as a network: inputs in, class scores out.

    Args:
        module: the user's module; its own hooks train it.
        inputs: names of arguments of `forward` -> names of the data's inputs; None: the inputs as they are.
        batch: whether its `training_step` gets `(x, y)` or a dictionary.
        target: the key of the targets in such a dictionary.
    """

    def __init__(self, module: "LightningModule", inputs: Mapping[str, str] | None, batch: str, target: str):
        super().__init__()
        self.module = module
        self.inputs = None if inputs is None else dict(inputs)
        self.batch = batch
        self.target = target
        self._at_rest = [part for part in module.modules() if not part.training]

    def train(self, mode: bool = True) -> "UserModule":
        """Training mode, but for parts that the constructor has put into eval mode: a plain Trainer leaves these there, too."""
        super().train(mode)
        for part in self._at_rest:
            part.training = False
        return self

    def lent(self) -> "UserModule":
        """The same tensors in a module of its own, to be trained: whatever else it remembers meanwhile goes with it.

        A client must not see what the client before it has counted, cached or logged.
        """
        shared = {id(part): part for part in (*self.parameters(), *self.buffers())}
        # What a forward pass has left cannot be copied, and is made again by the next one.
        left = (part for module in self.modules() for part in vars(module).values() if isinstance(part, Tensor))
        shared |= {id(part): part for part in left if not part.is_leaf}
        return copy.deepcopy(self, dict(shared))

    @torch.no_grad()
    def take_back(self, lent: "UserModule") -> None:
        """Take over the tensors that a lent module has replaced, instead of changed in place, while it was trained.

        Raises:
            ConfigError: they have other names or shapes than before.
        """
        for own, other in (
            (dict(self.named_parameters()), dict(lent.named_parameters())),
            (dict(self.named_buffers()), dict(lent.named_buffers())),
        ):
            if {name: part.shape for name, part in own.items()} != {name: part.shape for name, part in other.items()}:
                raise ConfigError(
                    f"{type(self.module).__name__} has other parameters or buffers after its training", "model"
                )
            for name, part in own.items():
                if other[name] is not part:
                    part.copy_(other[name])

    def forward(self, x: Inputs) -> Tensor:
        """`[B, K]` scores: what `scores(...)` of the module gives where it has such a method, else its `forward`."""
        scores = getattr(self.module, "scores", self.module)
        if self.inputs is None:
            out: Tensor = scores(dict(x) if isinstance(x, Named) else x)
        else:
            named = x if isinstance(x, Mapping) else dict.fromkeys(self.inputs.values(), x)
            out = scores(**{argument: named[name] for argument, name in self.inputs.items()})
        return out

    def batch_of(self, x: Inputs, y: Tensor) -> Any:
        """What the module's `training_step` gets."""
        if self.batch == "tuple":
            return dict(x) if isinstance(x, Mapping) else x, y
        return {**(x if isinstance(x, Mapping) else {"x": x}), self.target: y}

    def parts_of(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Inputs and targets of what `batch_of` has made."""
        if self.batch == "tuple":
            x, y = batch
            return Named(x) if isinstance(x, Mapping) else x, y
        rest = {name: part for name, part in batch.items() if name != self.target}
        return rest["x"] if list(rest) == ["x"] else Named(rest), batch[self.target]


class Lightning(Model):
    """A LightningModule of your own: `{name: lightning, module: "pkg.mod:Class", args: {...}}`, trained by `client.loop: module`.

    Its own training step, optimizers, schedulers, hooks and logging are used as they are; attackers train the same module on
    their samples. The server needs class scores: `forward` gives them, or a method `scores` with the same arguments.

    Attributes:
        module: `module:Class`, or the class itself.
        args: arguments of its constructor.
        inputs: names of arguments of `forward` -> names of the data's inputs, such as `{ids: tokens, mask: mask}`.
        batch: whether `training_step` gets the tuple `(x, y)` or a dictionary of the inputs and the target.
        target: the target's key in such a dictionary.
    """

    name: ClassVar[str] = "lightning"
    named_inputs: ClassVar[bool] = True
    losses: ClassVar[tuple[Any, ...]] = ("cross_entropy", "mse")

    module: str
    args: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] | None = None
    batch: Literal["tuple", "dict"] = "tuple"
    target: str = "y"

    @field_validator("module", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return f"{value.__module__}:{value.__qualname__}" if isinstance(value, type) else value

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The user's module, made of `args`; raises ConfigError where it cannot be made."""
        from lightning.pytorch import LightningModule

        made = import_class(self.module)
        if not (isinstance(made, type) and issubclass(made, LightningModule)):
            raise ConfigError(f"{self.module} is no LightningModule", "module")
        try:
            module = made(**self.args)
            module.configure_model()
            network = UserModule(module, self.inputs, self.batch, self.target)
            network.lent()
            return network
        except Exception as error:  # whatever a foreign constructor raises
            raise ConfigError(f"{self.module} with {self.args}: {type(error).__name__}: {error}", "args") from error

    def check(self, network: nn.Module, samples: Samples, classes: int) -> None:
        """Refuse a module that gives no class scores, before anything is trained."""
        was = network.training
        network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                scores = network(samples[:2].x)
        except Exception as error:  # whatever a foreign forward raises
            said = str(error).splitlines()[0] if str(error) else ""
            raise ConfigError(
                f"{self.module} cannot take the data's inputs: {type(error).__name__}: {said}", "inputs"
            ) from error
        finally:
            network.train(was)
        wanted = [min(2, len(samples)), classes]
        if not isinstance(scores, Tensor) or list(scores.shape) != wanted:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigError(
                f"{self.module} gives {got} for {wanted[0]} inputs where [B, {classes}] scores are needed: "
                "define scores(...) with the arguments of forward",
                "module",
            )
