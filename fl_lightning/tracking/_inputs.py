"""Data sets as inputs of a run: which runs used this very MNIST?"""

import hashlib
import json
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Dataset as Used
from mlflow.entities import DatasetInput, InputTag

from fl_lightning.config import Experiment
from fl_lightning.data import Dataset, Samples

__all__ = ["checksum", "log_data"]

CONTEXT = "mlflow.data.context"
"""Tag in which MLflow's pages look for what a data set was used for."""

DIGITS = 36
"""Characters of a digest that MLflow keeps."""

MOST = 10**9
"""Bytes that are read for a checksum; of more, rows at even distances are taken."""

_known: dict[str, dict[str, str]] = {}
"""Checksums by the settings that the data came from: a search reads its data for every trial."""


def log_data(store: MlflowClient, run_id: str, experiment: Experiment, data: Dataset) -> None:
    """Name the training and the test set as inputs of a run, by the checksum of what is in them."""
    settings = {key: value for key, value in experiment.data.to_dict().items() if value not in (None, 0, "")}
    source = json.dumps(settings | ({"synthetic": True} if experiment.fast else {}), default=str, sort_keys=True)
    parts = {"training": data.train, "testing": data.test}
    if source not in _known:
        _known[source] = {context: checksum(samples) for context, samples in parts.items()}
    inputs = []
    for context, samples in parts.items():
        digest = _known[source][context]
        profile = json.dumps({"num_rows": len(samples), "classes": data.classes, "sha256": digest})
        used = Used(f"{experiment.data.name} {context}", digest[:DIGITS], "fl_lightning", source, profile=profile)
        inputs.append(DatasetInput(dataset=used, tags=[InputTag(CONTEXT, context)]))
    store.log_inputs(run_id, inputs)


def checksum(samples: Samples) -> str:
    """SHA-256 of inputs and targets as they are used, 64 hexadecimal digits.

    Of more than 10^9 bytes only rows at even distances are read, the first one among them.

    Example:
        >>> import torch
        >>> some = Samples(torch.eye(2), torch.tensor([0, 1]))
        >>> checksum(some) == checksum(Samples(torch.eye(2), torch.tensor([0, 1])))
        True
        >>> checksum(some) == checksum(some[torch.tensor([1, 0])])
        False
    """
    parts = [*(samples.x.values() if isinstance(samples.x, Mapping) else [samples.x]), samples.y]
    size = sum(part.nbytes for part in parts)
    found = hashlib.sha256(f"{len(samples)}".encode())
    for part in parts:
        rows = part[:: -(-size // MOST)].detach().cpu().contiguous()
        found.update(f"{rows.dtype} {tuple(rows.shape)}".encode())
        found.update(rows.numpy().data)
    return found.hexdigest()
