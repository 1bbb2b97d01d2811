"""Parts of ByzFL by name: its aggregators, pre-aggregators and attacks, as plain functions of tensors.

ByzFL rounds torch tensors to float32 but leaves NumPy arrays as they are: everything goes through float64 arrays. What it draws,
it draws from NumPy's global generator, which follows here from a key and is afterwards as it was.

References:
    González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL: Research Framework for Robust Federated Learning", 2025.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.errors import ConfigError, excerpt, suggest

Part = Mapping[str, Any]
"""`{"name": ..., option: value, ...}`."""


def classes(kind: str) -> dict[str, type[Any]]:
    """The classes of a module of ByzFL by name: `aggregators`, `preaggregators` or `attacks`.

    Raises:
        ConfigError: ByzFL is not installed.
    """
    if importlib.util.find_spec("byzfl") is None:
        raise ConfigError("comes with ByzFL: pip install 'fl-lightning[byzfl]'")
    module: ModuleType = importlib.import_module(f"byzfl.{'attacks' if kind == 'attacks' else 'aggregators'}.{kind}")
    return {
        name: cls for name, cls in vars(module).items() if inspect.isclass(cls) and cls.__module__ == module.__name__
    }


def built(kind: str, part: Part, n_byzantine: int | None) -> Any:
    """An instance of one of ByzFL's classes; f is filled in where it takes one and none is given.

    Raises:
        ConfigError: unknown name or option, or a value that ByzFL refuses.
    """
    known = classes(kind)
    options = dict(part)
    name = options.pop("name", None)
    if name not in known:
        raise ConfigError(f"ByzFL has no {excerpt(name)} among its {kind}; {suggest(str(name), known)}")
    parameters = inspect.signature(known[name]).parameters
    for option in options:
        if option not in parameters:
            raise ConfigError(f"{name}: unknown key {option}; {suggest(option, parameters)}")
    if "f" in parameters and n_byzantine is not None:
        options.setdefault("f", n_byzantine)
    for option, value in options.items():  # ByzFL refuses 2 where it wants 2.0
        if isinstance(parameters[option].default, float) and isinstance(value, int) and not isinstance(value, bool):
            options[option] = float(value)
    try:
        return known[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"ByzFL's {name} refuses its options: {error}") from error


def parts(steps: Sequence[str | Part]) -> list[dict[str, Any]]:
    """Steps given by name or mapping, as mappings."""
    return [{"name": step} if isinstance(step, str) else dict(step) for step in steps]


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Inside, NumPy's global generator follows from a generator."""
    kept = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**32, (), generator=generator)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(kept)  # noqa: NPY002


def applied(chain: Sequence[Callable[[Any], Any]], rows_CD: Tensor, generator: torch.Generator) -> Tensor:
    """What a chain of ByzFL's callables makes of the rows, in the type and on the device of the rows.

    Args:
        chain: pre-aggregators and then a rule, or an attack.
        rows_CD: `[C, D]`.
        generator: whence random numbers follow.

    Returns:
        `[D]`.
    """
    values = rows_CD.detach().double().cpu().numpy()
    with drawn_from(generator), np.errstate(all="ignore"):
        for step in chain:
            values = step(values)
    return torch.from_numpy(np.asarray(values)).to(rows_CD)
