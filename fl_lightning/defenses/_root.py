"""The few samples that a server trusts: drawn once, the same in every round."""

import torch
from torch import Tensor

from fl_lightning.data import Samples
from fl_lightning.defenses._base import ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._verdicts import filtered, trained_slice
from fl_lightning.errors import ConfigError


def root_rows(
    name: str, context: ServerContext, state: State, size: int, bias: tuple[int, float] | None = None
) -> Tensor:
    """Numbers of the validation samples that are trusted: as many as wanted, drawn in the first round and kept in the state.

    Args:
        name: of the defense, for messages.
        context: of the round.
        state: of the defense; `root` holds the rows once they are drawn.
        size: how many; all where there are fewer.
        bias: (class, share) when a share of them belongs to one class, as a server's own data may.

    Raises:
        ConfigError: the server has no samples.
    """
    samples = need_validation(name, context.validation)
    if "root" in state:
        known: Tensor = state["root"]
        return known.to(samples.y.device)
    order = torch.randperm(len(samples), generator=context.generator("root")).to(samples.y.device)
    if bias is None:
        return order[:size]
    label, share = bias
    inside = samples.y[order] == label
    many = round(share * size)
    return torch.cat([order[inside][:many], order[~inside][: size - many]])


def draw_for_later(name: str, updates_CD: Tensor, context: ServerContext, state: State, size: int) -> Verdict:
    """The verdict of a defense that works on the model after the last round: all rows stay, its samples are drawn now."""
    rows = root_rows(name, context, state, size)
    everybody_C = torch.ones(len(updates_CD), dtype=torch.bool)
    return filtered(updates_CD, context, everybody_C, state={"root": rows})


def per_class(samples: Samples, each: int, label: int | None = None) -> Samples:
    """The first few samples of every class, or of one."""
    labels = sorted(set(samples.y.tolist())) if label is None else [label]
    rows = [(samples.y == wanted).nonzero().flatten()[:each] for wanted in labels]
    return samples[torch.cat(rows)]


def server_update(name: str, context: ServerContext, samples: Samples) -> Tensor:
    """What the server's own training, done as the clients do it, changes in the trained parameters.

    Raises:
        ConfigError: the server cannot train.
    """
    if context.train is None:
        raise ConfigError(f"{name} needs a server that can train on its samples")
    update_D: Tensor = context.train(samples, name)
    return update_D[trained_slice(context)]
