"""How many rows a method takes to be malicious: a number, a share of the rows, or `auto`."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from fl_lightning.registry import Tunable

SHARE = 0.2
"""What `auto` assumes, as the settings of most papers do: ten malicious clients of fifty."""


class Auto(int):
    """Stands for a number that follows from the number of rows; written `auto` in configurations."""

    def __repr__(self) -> str:
        return "auto"

    def __str__(self) -> str:
        return "auto"

    def __format__(self, spec: str) -> str:
        return "auto"

    def to_dict(self) -> str:
        """As a configuration writes it."""
        return "auto"


AUTO = Auto(-1)


class Share(Auto):
    """Stands for a share of the rows, at least one; written as a number between 0 and 1 in configurations."""

    share: float

    def __new__(cls, share: float) -> "Share":
        """From the share."""
        made = super().__new__(cls, -1)
        made.share = share
        return made

    def __getnewargs__(self) -> tuple[float]:  # type: ignore[override]
        """A copy is made from the share, too."""
        return (self.share,)

    def __repr__(self) -> str:
        return str(self.share)

    def __str__(self) -> str:
        return str(self.share)

    def __format__(self, spec: str) -> str:
        return str(self.share)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Share) and self.share == other.share

    def __hash__(self) -> int:
        return hash(self.share)

    def to_dict(self) -> float:  # type: ignore[override]
        """As a configuration writes it."""
        return self.share


class Tolerant:
    """Base of what may ask how many rows are malicious."""

    if TYPE_CHECKING:

        @property
        def n_byzantine(self) -> int | None:
            """f, how many rows it takes to be malicious; a field of the methods that ask for it."""
            return None
    else:
        n_byzantine = None


def number_or_auto(value: Any, number: ValidatorFunctionWrapHandler) -> int:
    """`auto`, a share between 0 and 1, or what the field's type makes of the value."""
    if isinstance(value, Share):
        return value
    if isinstance(value, Auto) or value == "auto":
        return AUTO
    return Share(value) if isinstance(value, float) and 0 < value < 1 else int(number(value))


Byzantine = Annotated[int, Field(ge=0), WrapValidator(number_or_auto), Tunable(0.05, 0.45)]
"""Type of the field `n_byzantine`: at least 0, a share of the rows such as 0.3, or `auto`; a search draws shares."""


def assumed(n_byzantine: int, n_rows: int) -> int:
    """The number itself; a share of the rows, rounded down, at least 1; a fifth of them where it is `auto`.

    Example:
        >>> assumed(Share(0.3), 10), assumed(Share(0.3), 2), assumed(AUTO, 12), assumed(4, 12)
        (3, 1, 2, 4)
    """
    if isinstance(n_byzantine, Share):
        return max(1, int(n_byzantine.share * n_rows + 1e-9))
    return int(SHARE * n_rows + 1e-9) if isinstance(n_byzantine, Auto) else n_byzantine


def check_majority(rule: str, n_clients: int, n_byzantine: int) -> None:
    """Raise ValueError unless f >= 0 and C > 2f."""
    if n_byzantine < 0 or n_clients <= 2 * n_byzantine:
        raise ValueError(f"{rule} needs C > 2f, got C={n_clients}, f={n_byzantine}")
