"""A backdoor in the few layers that carry it; the rest is sent as honest clients train it.

References:
    Zhuang, Yu, Wang, Hua, Li, Yuan, "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR 2024,
    section 3 (layer substitution analysis) and section 4 (layer-wise poisoning).
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._backdoor_training import BackdoorTraining, attacker_client, mix
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.models import FlatNetwork

HELD_OUT = 0.2
MOST_HELD_OUT = 200

Memory = dict[str, dict[str, list[int]]]
"""For every attacker its layers, and the round in which they were found."""


class Critical(NamedTuple):
    """Layers that carry a backdoor.

    Attributes:
        layers: their numbers, ascending; empty where the whole model does not carry it either.
        drops: for each layer, how much of the success is lost without it.
    """

    layers: list[int]
    drops: list[float]


def critical_layers(success: Callable[[Sequence[int]], float], count: int, tau: float) -> Critical:
    """The layers whose backdoored versions suffice for a share `tau` of the success of all.

    Forward: the success that is lost where one layer is taken from the honest model. Backward: layers are added to the honest
    model, the most missed ones first, until the success is at least tau times that of all layers.

    Args:
        success: of the model that takes these layers from the backdoored model and the others from the honest one.
        count: number of layers.
        tau: in (0, 1].

    Example:
        >>> parts = [0.05, 0.3, 0.6, 0.1]
        >>> critical_layers(lambda layers: min(1, sum(parts[i] for i in layers)), 4, 0.8).layers
        [1, 2]
    """
    everything = list(range(count))
    whole = success(everything)
    drops = [whole - success([other for other in everything if other != layer]) for layer in everything]
    if whole <= 0:
        return Critical([], drops)
    taken: list[int] = []
    for layer in sorted(everything, key=lambda layer: -drops[layer]):
        taken.append(layer)
        if success(sorted(taken)) >= tau * whole:
            break
    return Critical(sorted(taken), drops)


def layers_of(flat: FlatNetwork) -> Tensor:
    """`[D]` the number of the layer that each coordinate belongs to: one layer a module with parameters, statistics with it."""
    numbers: dict[str, int] = {}
    owners = [numbers.setdefault(name.rpartition(".")[0], len(numbers)) for name in flat.names]
    return torch.repeat_interleave(torch.tensor(owners), torch.tensor(flat.sizes))


class CriticalLayers(BackdoorTraining):
    """Send the backdoored model in its critical layers, and the attackers' mean honest update in all others.

    Each attacker keeps a fifth of its samples (at most 200) from training and measures on them, dirty, which layers carry the
    backdoor. One whose backdoored model does not reach its goal on them trains honestly in that round.

    Attributes:
        tau: share of the success of the whole backdoored model that the chosen layers must reach.
        scale: factor on the backdoored layers.
        every: rounds between two searches of an attacker.
    """

    name: ClassVar[str] = "critical_layers"
    cites: ClassVar[tuple[str, ...]] = ("zhuang2024backdoor",)

    tau: Annotated[float, Tunable(0.5, 0.99)] = Field(default=0.95, gt=0, le=1)
    scale: Annotated[float, Tunable(0.2, 2, log=True)] = Field(default=1.0, gt=0)
    every: int = Field(default=1, ge=1)
    # both models must start from the broadcast one and see the same samples
    start: Literal["global"] = "global"
    rehearsal: Literal[0] = 0

    def poison(self, view: View, state: State) -> Poisoned:
        """Train honestly and with the backdoor, search the layers, and mix."""
        held, kept = zip(*(self._split(view, row, own) for row, own in enumerate(view.own_samples)), strict=True)
        lessons = [
            mix(own, view.dirty(own), self.poison_fraction, view.generator("mix", row)) for row, own in enumerate(kept)
        ]
        client = attacker_client(view.client, self.epochs, self.lr_factor)
        bad_MD = view.train(lessons, client, self.callbacks(view))
        honest_MD, mean_D = view.own_updates, view.own_updates.mean(0)
        layer_D = layers_of(view.flat).to(bad_MD.device)
        memory: dict[str, dict[str, list[int]]] = {
            "layers": dict(state.get("layers", {})),
            "rounds": dict(state.get("rounds", {})),
        }
        rows, found, number = [], 0, 0
        for row, client_id in enumerate(map(str, view.own_clients.tolist())):
            wished = view.dirty(held[row])
            layers = self._layers(view, client_id, wished, bad_MD[row], honest_MD[row], layer_D, memory)
            chosen_D = torch.isin(layer_D, torch.tensor(layers, device=layer_D.device))
            rows.append(torch.where(chosen_D, self.scale * bad_MD[row], mean_D) if layers else honest_MD[row])
            found, number = found + bool(layers), number + len(layers)
        figures = {"found": found / len(rows), "layers": number / max(1, found)}
        return self.sent(view, torch.stack(rows), memory, **figures)

    def _split(self, view: View, row: int, own: Samples) -> tuple[Samples, Samples]:
        """What is held out from training, and the rest; of a single sample, both are that sample."""
        order = torch.randperm(len(own), generator=view.generator("held out", row)).to(own.y.device)
        size = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(own))))
        return own[order[:size]], own[order[size:].sort().values] if len(own) > 1 else own

    def _layers(
        self,
        view: View,
        client: str,
        wished: Samples,
        bad_D: Tensor,
        honest_D: Tensor,
        layer_D: Tensor,
        memory: Memory,
    ) -> list[int]:
        """The critical layers of one attacker, searched anew every so many rounds."""
        last = memory["rounds"].get(client)
        if last is not None and view.round - last[0] < self.every:
            return memory["layers"][client]

        def success(layers: Sequence[int]) -> float:
            chosen_D = torch.isin(layer_D, torch.tensor(list(layers), device=layer_D.device))
            return view.flat.accuracy(view.global_D + torch.where(chosen_D, bad_D, honest_D), wished)

        layers = critical_layers(success, int(layer_D.max()) + 1, self.tau).layers
        memory["layers"][client], memory["rounds"][client] = layers, [view.round]
        return layers
