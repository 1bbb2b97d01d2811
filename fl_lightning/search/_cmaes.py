"""Optuna's CMA-ES without its pickles: it keeps its state in the database as one, and a database may come from anywhere."""

import io
import logging
import pickle
from importlib.util import find_spec
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fl_lightning.errors import ConfigError

__all__ = ["CmaEs", "check_sampler", "restored"]

ALLOWED = {
    ("cmaes._cma", "CMA"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.random._mt19937", "MT19937"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
    *(("numpy.random._pickle", f"__{name}_ctor") for name in ("randomstate", "bit_generator", "generator")),
}
"""What the state of CMA-ES is made of; nothing of it runs what it is given."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def restored(text: str) -> Any:
    """What a state in hexadecimal digits holds; None, with a word, where it holds anything but arrays and CMA-ES itself."""
    try:
        return _Plain(io.BytesIO(bytes.fromhex(text))).load()
    except Exception as error:  # whatever somebody has put there
        logging.getLogger("fl_lightning").warning("the state of CMA-ES is not read (%s): it begins anew", error)
        return None


class CmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES that executes nothing of what it reads."""

    # Private: Optuna offers no public way to say how the state is read, and reads it by `pickle.loads`. Under another name the
    # override would be dead, without a word: hence the upper bound of the dependency, and a test with a state that executes.
    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            parts = {key: text for key, text in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if parts:
                return restored(
                    "".join(str(parts.get(f"{self._attr_key_optimizer}:{n}", "")) for n in range(len(parts)))
                )
        return None


def check_sampler(name: str) -> None:
    """Refuse a sampler whose package is missing; Optuna would find out in the second trial.

    Raises:
        ConfigError: naming the package.
    """
    if name == "cmaes" and find_spec("cmaes") is None:
        raise ConfigError("cmaes needs a package that is not installed: pip install cmaes", "sweep.sampler")
