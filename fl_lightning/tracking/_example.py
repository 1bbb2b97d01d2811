"""What one input of a model looks like: kept beside its weights, and made again as an example."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from fl_lightning.data import Inputs

__all__ = ["arrays", "described", "numbers_in", "shape_and_types", "zeros"]


def described(x: Inputs) -> dict[str, str]:
    """Shape and type of one of the inputs, as words: `1,8,8` and `float32`, or JSON by name."""
    if isinstance(x, Mapping):
        shapes = {name: list(part.shape[1:]) for name, part in x.items()}
        types = {name: _word(part) for name, part in x.items()}
        return {"shape": json.dumps(shapes), "dtype": json.dumps(types)}
    return {"shape": ",".join(map(str, x.shape[1:])), "dtype": _word(x)}


def shape_and_types(about: Mapping[str, str]) -> tuple[Any, Any]:
    """What `described` has written, read again; models of before have real numbers.

    Raises:
        ValueError: it is something else.
    """
    shape, types = about["shape"], about.get("dtype", "float32")
    if not shape.startswith("{"):
        return tuple(map(int, shape.split(","))), _type(types)
    names = json.loads(types)
    return (
        {name: tuple(map(int, part)) for name, part in json.loads(shape).items()},
        {name: _type(word) for name, word in names.items()},
    )


def zeros(shape: Any, types: Any, count: int = 2) -> Any:
    """`count` inputs of zeros; masks show everything."""
    if isinstance(shape, Mapping):
        return {name: zeros(part, types[name], count) for name, part in shape.items()}
    make = torch.ones if types == torch.bool else torch.zeros
    return make(count, *shape, dtype=types)


def numbers_in(shape: Any) -> int:
    """How many numbers one input has."""
    return sum(map(math.prod, shape.values())) if isinstance(shape, Mapping) else math.prod(shape)


def arrays(x: Inputs) -> Any:
    """The inputs as NumPy arrays."""
    return {name: arrays(part) for name, part in x.items()} if isinstance(x, Mapping) else x.cpu().numpy()


def _word(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _type(word: Any) -> torch.dtype:
    found = getattr(torch, str(word), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no type of numbers is called {word!r}")
    return found
