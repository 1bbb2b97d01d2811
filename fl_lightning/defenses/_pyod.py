"""Any detector of PyOD on the updates of a round.

References:
    Zhao, Nasrullah, Li, "PyOD: A Python Toolbox for Scalable Outlier Detection", JMLR 20(96), 2019.
    Li, Cheng, Wang, Liu, Chen, "Learning to Detect Malicious Clients for Robust Federated Learning", 2020: surrogates of
    updates.
"""

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Byzantine, assumed
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected
from fl_lightning.defenses._rejection import largest
from fl_lightning.defenses._spectral import LIMIT, seeded
from fl_lightning.errors import ConfigError, suggest

COMMON = (
    "abod",
    "cblof",
    "copod",
    "ecod",
    "gmm",
    "hbos",
    "iforest",
    "inne",
    "kde",
    "knn",
    "lof",
    "mcd",
    "ocsvm",
    "pca",
)
"""Detectors on tables, for messages; others of `pyod.models` are taken as well."""


def detector_class(name: str) -> type[Any]:
    """PyOD's class by the name of its module in `pyod.models`, such as `ecod` or `iforest`.

    Raises:
        ConfigError: PyOD is not installed, or has no such detector.
    """
    if importlib.util.find_spec("pyod") is None:
        raise ConfigError("this detector comes with PyOD: pip install fl-lightning[pyod]", "detector")
    try:
        module = importlib.import_module(f"pyod.models.{name.lower()}")
    except ImportError:
        raise ConfigError(f"PyOD has no detector {name!r}; {suggest(name.lower(), COMMON)}", "detector") from None
    wanted = name.lower().replace("_", "")
    for attribute, value in vars(module).items():
        if inspect.isclass(value) and attribute.lower().replace("_", "") == wanted:
            return value
    raise ConfigError(f"PyOD has no detector {name!r}; {suggest(name.lower(), COMMON)}", "detector")


def build(name: str, options: Mapping[str, Any], share: float, seed: int) -> Any:
    """A detector that expects a share of outliers and draws its random numbers from a seed, where it can be told.

    Raises:
        ConfigError: unknown detector or option, or a value that it refuses.
    """
    cls = detector_class(name)
    known = inspect.signature(cls).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"unknown key; {suggest(option, known)}", f"options.{option}")
    own = {"contamination": share, "random_state": seed % 2**32}
    try:
        return cls(**{key: value for key, value in own.items() if key in known} | dict(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"PyOD's {name} refuses its options: {error}", "options") from None


class Pyod(Defense):
    """Removes the `n_byzantine` rows that a detector of PyOD, fitted to the rows of the round, finds strangest.

    The detector learns from the very rows that it judges and needs no samples at the server; attackers who act as one and are
    many look normal to it.

    Attributes:
        detector: module of `pyod.models`, such as `ecod`, `iforest`, `knn`, `lof`, `pca`.
        options: the detector's own options.
        n_byzantine: number of rows removed.
        coordinates: how many coordinates, drawn afresh each round, stand for an update.
    """

    name: ClassVar[str] = "pyod"
    cites: ClassVar[tuple[str, ...]] = ("zhao2019pyod", "li2020learning")

    detector: str = "ecod"
    options: dict[str, Any] = Field(default_factory=dict)
    n_byzantine: Byzantine
    coordinates: int = Field(default=1000, ge=2)

    def check(self, aggregator: Any, validation: bool) -> None:
        """PyOD is there, and knows the detector and its options."""
        build(self.detector, self.options, 0.1, 0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The strangest rows go; a detector that cannot be fitted to so few or so equal rows removes nobody."""
        n_rows = len(updates_CD)
        count = assumed(self.n_byzantine, n_rows)
        random = context.generator("coordinates")
        columns_F = torch.randperm(updates_CD.shape[1], generator=random)[: self.coordinates].to(updates_CD.device)
        rows_CF = updates_CD[:, columns_F].double()
        spread = rows_CF.abs().mean(1).median().clamp(min=1e-30)
        table = (rows_CF / spread).clamp(-LIMIT, LIMIT).cpu().numpy()
        share = min(0.5, max(1, count) / max(2, n_rows))
        generator = context.generator(self.name)
        model = build(self.detector, self.options, share, generator.initial_seed())
        nobody_C = torch.zeros(n_rows, dtype=torch.bool, device=updates_CD.device)
        before = np.random.get_state()  # noqa: NPY002 - some detectors draw from numpy's global numbers
        try:
            with seeded(generator), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.random.seed(generator.initial_seed() % 2**32)  # noqa: NPY002
                model.fit(table)
        except (ValueError, np.linalg.LinAlgError):
            return Verdict(~nobody_C, context.weights_C, updates_CD, None, {}, {"unfitted": 1.0})
        finally:
            np.random.set_state(before)  # noqa: NPY002
        scores_C = torch.from_numpy(np.asarray(model.decision_scores_, dtype=float)).nan_to_num(nan=0.0)
        scores_C = scores_C.to(updates_CD.device)
        return detected(updates_CD, context, largest(scores_C, count, context.generator("ties")), scores_C)
