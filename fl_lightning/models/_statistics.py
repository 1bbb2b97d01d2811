"""What becomes of running statistics: the policy `buffers` of a model, for every network."""

from typing import Any, Literal

from torch import nn

__all__ = ["BATCH_NORMS", "Buffers", "frozen", "with_policy"]

Buffers = Literal["average", "local", "freeze"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that normalise by the statistics of a batch, and keep running ones."""


class _KeepsStatistics:
    """A normalisation layer that never leaves eval mode: it normalises by the statistics that it came with."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


class FixedBatchNorm1d(_KeepsStatistics, nn.BatchNorm1d):
    """BatchNorm1d by fixed statistics."""


class FixedBatchNorm2d(_KeepsStatistics, nn.BatchNorm2d):
    """BatchNorm2d by fixed statistics."""


class FixedBatchNorm3d(_KeepsStatistics, nn.BatchNorm3d):
    """BatchNorm3d by fixed statistics."""


FIXED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FixedBatchNorm1d,
    nn.BatchNorm2d: FixedBatchNorm2d,
    nn.BatchNorm3d: FixedBatchNorm3d,
}


def frozen(module: nn.Module) -> bool:
    """Whether a layer has parameters of its own and none of them is trained."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def with_policy(network: nn.Module, buffers: Buffers) -> nn.Module:
    """The network with its normalisation layers under a policy; changed in place.

    * `average`: statistics travel with the update and are aggregated like parameters, but for those of frozen layers, which stay.
    * `local`: nothing is tracked; every batch, of clients and of the evaluation, is normalised by its own mean and variance.
    * `freeze`: layers normalise by the statistics that they came with.

    Args:
        network: any module.
        buffers: the policy.
    """
    for module in network.modules():
        if not isinstance(module, BATCH_NORMS):
            continue
        if buffers == "freeze" or (buffers == "average" and frozen(module)):
            module.__class__ = FIXED.get(type(module), type(module))  # type: ignore[assignment]
            module.eval()
        elif buffers == "local":
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network
