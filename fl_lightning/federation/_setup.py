"""What a federation is made of: the network that it trains, and each client's samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_lightning.clients import check_loop, check_transform
from fl_lightning.config import Experiment
from fl_lightning.data import Dataset
from fl_lightning.engines import SharedTrainer, keyed_randomness
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.models import FlatNetwork, check_size, loss_for
from fl_lightning.randomness import generator, key_of


def built_network(experiment: Experiment, data: Dataset, trainer: SharedTrainer) -> FlatNetwork:
    """The first model with its loss, on the trainer's device.

    Raises:
        ConfigError: the model does not fit the data, the memory or the way clients train.
    """
    model = experiment.model
    if isinstance(data.train.x, Mapping) and not model.named_inputs:
        reason = f"{model.name} takes one tensor, the data has {', '.join(data.train.x)} by name"
        raise ConfigError(reason, "model")
    clients = experiment.partition.clients  # of `all` owners at most so many
    per_round = experiment.participation.per_round(clients if isinstance(clients, int) else len(data.owner_names))
    with errors_under("model"):
        check_size(model, data.shape, data.classes, per_round, trainer.device, trainer.dtype.itemsize)
    with torch.random.fork_rng(devices=[]), errors_under("model"):
        torch.manual_seed(key_of(experiment.seed, "initial model"))
        network = model.network(data.shape, data.classes).to(trainer.device, trainer.dtype)
        some = data.train[:2].to(trainer.device, trainer.dtype)
        model.check(network, some, data.classes)
    check_loop(experiment.client, network, experiment.trainer.accumulate, experiment.trainer.clip)
    with keyed_randomness(experiment.seed, 0, -1):
        check_transform(experiment.client, network, some)
    chosen = loss_for(model, data.task, data.classes, experiment.loss)
    return FlatNetwork(network, chosen, model.federate, model.buffers)


def dealt_rows(experiment: Experiment, data: Dataset, withheld: Tensor | None) -> list[Tensor]:
    """Each client's rows of the training split, without those that no client may train on.

    Raises:
        ConfigError: the partition does not fit the data, or a client is left without samples.
    """
    with errors_under("partition"):
        rows = list(experiment.partition.assign(data, generator(experiment.seed, "partition")))
    if withheld is not None:
        rows = [index[~torch.isin(index, withheld.to(index))] for index in rows]
    empty = [client for client, index in enumerate(rows) if not len(index)]
    if empty:
        raise ConfigError(f"clients {empty[:5]} of {len(rows)} hold no samples", "partition")
    return rows
