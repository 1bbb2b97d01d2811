"""What filters have in common: how they say who stays, what they measure a model by, and what they remember of every client."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_lightning.defenses._base import ServerContext, State, Verdict
from fl_lightning.errors import ConfigError


def filtered(
    updates_CD: Tensor,
    context: ServerContext,
    keep_C: Tensor | None,
    *,
    scale_C: Tensor | None = None,
    scores_C: Tensor | None = None,
    state: State | None = None,
    metrics: Mapping[str, float] | None = None,
    skip: bool = False,
) -> Verdict:
    """The verdict of a filter: rows stay or go and are scaled, none is rewritten.

    Args:
        updates_CD: `[C, D]` what was judged.
        context: of the round.
        keep_C: `[C]` bool, who stays; None: undecided, all stay.
        scale_C: `[C]` factors, or None.
        scores_C: `[C]` suspicion, or None.
        state: to remember.
        metrics: figures; `undecided` is added.
        skip: whether nobody may stay; otherwise all stay when all are suspected.
    """
    device = updates_CD.device
    everybody_C = torch.ones(len(updates_CD), dtype=torch.bool, device=device)
    flagged_C = ~everybody_C if keep_C is None else ~keep_C.to(device)
    undecided = keep_C is None or (bool(flagged_C.all()) and not skip)
    return Verdict(
        everybody_C if undecided else ~flagged_C,
        context.weights_C,
        None,
        None if scores_C is None else scores_C.to(device),
        state or {},
        {**(metrics or {}), "undecided": float(undecided)},
        None if scale_C is None else scale_C.to(device),
        flagged_C,
    )


def trained_slice(context: ServerContext) -> slice:
    """The columns of a model that are parameters."""
    return slice(None) if context.layout is None else context.layout.trained


def trained_model(context: ServerContext) -> Tensor:
    """The trained parameters of the model that the clients started from."""
    return context.global_D[trained_slice(context)]


def classifier_columns(context: ServerContext) -> Tensor:
    """Numbers of the columns of the classifier's weight, then of its bias.

    Raises:
        ConfigError: the model does not end in a linear layer, or nothing is known of its layers.
    """
    if context.layout is None:
        raise ConfigError("needs a model whose layers are known")
    classifier = context.layout.classifier
    parts = [classifier.weight] + ([] if classifier.bias is None else [classifier.bias])
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])


def recalled(state: State, name: str, population: int, width: int, like: Tensor, max_memory: float) -> Tensor:
    """`[N, F]` a copy of what is remembered of every client, zeros in the beginning.

    Args:
        state: of the defense.
        name: key of the tensor.
        population: N.
        width: F.
        like: tensor whose dtype and device are taken.
        max_memory: limit in GiB.

    Raises:
        ConfigError: the memory would be larger.
    """
    size = population * width * like.element_size() / 2**30
    if size > max_memory:
        raise ConfigError(
            f"memory of {population} clients x {width} values takes {size:.3g} GiB, more than max_memory {max_memory:g}",
            "max_memory",
        )
    if name in state:
        known: Tensor = state[name]
        return known.to(like).clone()
    return like.new_zeros(population, width)


def recalled_flags(state: State, name: str, population: int, device: torch.device) -> Tensor:
    """`[N]` bool, a copy of flags of every client, False in the beginning."""
    known: Tensor = state.get(name, torch.zeros(population, dtype=torch.bool))
    return known.to(device).clone()
