"""How many rows a method takes to be malicious: a number, or `auto`."""

from typing import Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

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


def number_or_auto(value: Any, number: ValidatorFunctionWrapHandler) -> int:
    """`auto`, or what the field's type makes of the value."""
    return AUTO if isinstance(value, Auto) or value == "auto" else int(number(value))


Byzantine = Annotated[int, Field(ge=0), WrapValidator(number_or_auto)]
"""Type of the field `n_byzantine`: at least 0, or `auto`."""


def assumed(n_byzantine: int, n_rows: int) -> int:
    """The number itself, or a fifth of the rows where it is `auto`."""
    return int(SHARE * n_rows + 1e-9) if isinstance(n_byzantine, Auto) else n_byzantine
