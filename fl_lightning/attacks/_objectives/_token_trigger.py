"""Rare tokens as a trigger."""

from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from fl_lightning.attacks._objectives._backdoor import Backdoor
from fl_lightning.attacks._patterns import Stamp, Stamps
from fl_lightning.data import Dataset, Named
from fl_lightning.errors import ConfigError


class TokenTrigger(Backdoor):
    """Texts with given tokens at a given place shall be taken for one class.

    Inputs are rows of token numbers, whole numbers in any dtype. A mask beside them shows the trigger, too.

    Attributes:
        token: number of the token, or of several that follow each other.
        position: place of the first of them; negative ones count from the end.

    Example:
        >>> TokenTrigger(token=(7, 8), position=-2).stamp(torch.tensor([[1, 2, 3]]))
        tensor([[1, 7, 8]])

    References:
        Kurita, Michel, Neubig, "Weight Poisoning Attacks on Pretrained Models", ACL 2020, section 3: rare tokens as triggers.
    """

    name: ClassVar[str] = "token_trigger"
    cites: ClassVar[tuple[str, ...]] = ("kurita2020weight",)

    usual_input: ClassVar[str | None] = "tokens"

    token: int | tuple[int, ...] = Field()
    position: int = 0

    @field_validator("token")
    @classmethod
    def _numbers_of_tokens(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if value == () or any(number < 0 for number in _several(value)):
            raise ValueError("needs numbers of tokens, 0 or more")
        return value

    def stamp(self, x: Tensor) -> Tensor:
        """`[n, length]` copies of the texts with the tokens written over what stood there."""
        tokens = _several(self.token)
        first = self.position % x.shape[1]
        stamped = x.clone()
        stamped[:, first : first + len(tokens)] = x.new_tensor(tokens)
        return stamped

    def placed(self, x: Named, name: str, stamp: Stamp) -> Named:
        """The tokens are there for a mask, too: an input of truth values as long as the texts."""
        placed, first = super().placed(x, name, stamp), self.position % x[name].shape[1]
        for other, part in x.items():
            if part.dtype == torch.bool and part.shape == x[name].shape:
                placed[other] = part.clone()
                placed[other][:, first : first + len(_several(self.token))] = True
        return placed

    def stamps(self, data: Dataset, generator: torch.Generator) -> Stamps:
        """The tokens; refused where the inputs are no rows of token numbers, or too short."""
        x = data.train.x
        if not isinstance(x, Tensor) or x.ndim != 2 or bool((x != x.round()).any()) or bool((x < 0).any()):
            raise ConfigError(f"token_trigger needs rows of token numbers, got inputs of shape {data.shape}, {x.dtype}")
        length, count = data.shape[0], len(_several(self.token))
        if not -length <= self.position < length or self.position % length + count > length:
            raise ConfigError(
                f"{count} tokens do not fit into texts of {length} there, got {self.position}", "position"
            )
        return Stamps(self.stamp)


def _several(token: int | tuple[int, ...]) -> tuple[int, ...]:
    return (token,) if isinstance(token, int) else token
