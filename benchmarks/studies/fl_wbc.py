"""How long a repeated attack survives under FL-WBC, robust rules and differential privacy.

Fashion-MNIST, 100 clients x 600 samples, 10 a round, sgd 0.05, one local epoch of 19 steps. From a federation of 25 honest rounds
on, five of ten clients repeat the same dirty-labelled image in rounds 0, 4 and 8: 20 steps on that image alone. Mitigation
rounds: how many rounds after the third attack the confidence in the wished label first lies below one half, and below it for
good; `TAIL` where it never does. One line of JSON for each seed, image and arm.

    python benchmarks/studies/fl_wbc.py results.jsonl [--model mlp] [--images 5] [--seeds 3] [--arms main]
"""

import argparse
import json
import time
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from fl_lightning.attacks import Attack, Poisoned, TargetSamples, View
from fl_lightning.config import load
from fl_lightning.defenses import State
from fl_lightning.federation import Federation
from fl_lightning.participation import Cohort, FromRound, KOfN, Once
from fl_lightning.randomness import generator
from fl_lightning.registry import component

START, ATTACKED, TAIL, LR = 25, (25, 29, 33), 10, 0.05
WBC = {"name": "fl_wbc", "std": 0.4}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "main": {
        "none": {},
        "median": {"aggregator": {"name": "median"}},
        "trimmed_mean 2": {"aggregator": {"name": "trimmed_mean", "n_byzantine": 2}},
        "fl_wbc 0.4": {"wbc": WBC},
        "fl_wbc 0.4 no mask": {"wbc": WBC | {"mask": False}},
        "fl_wbc 0.4 + median": {"wbc": WBC, "aggregator": {"name": "median"}},
    },
    "trade-off": {
        **{f"fl_wbc {std}": {"wbc": WBC | {"std": std}} for std in (0.1, 0.2, 0.7, 1.0)},
        **{f"fl_wbc {std} no mask": {"wbc": WBC | {"std": std, "mask": False}} for std in (0.1, 0.2)},
        **{f"cdp {std} x lr": {"privacy": {"name": "cdp", "std": std, "rate": LR}} for std in (0.1, 0.4, 0.7, 1.0)},
        **{f"ldp {std} x lr": {"privacy": {"name": "ldp", "std": std, "rate": LR}} for std in (0.4, 1.0, 2.0, 3.0)},
        **{f"cdp {std}": {"privacy": {"name": "cdp", "std": std}} for std in (0.1, 0.4)},
        **{f"ldp {std}": {"privacy": {"name": "ldp", "std": std}} for std in (0.1, 0.4)},
    },
}


@component
class Campaign(KOfN):
    """Attacks in given rounds.

    Attributes:
        attacked: the adversarial rounds.
    """

    name: ClassVar[str] = "campaign"
    attacked: tuple[int, ...] = ATTACKED

    def sample(self, round: int, n_clients: int, seed: int) -> Cohort:
        """As `k_of_n`, forced."""
        schedule = FromRound(round=0) if round in self.attacked else Once(round=10**9)
        settings = {"k": self.k, "malicious": self.malicious, "forced": True, "schedule": schedule}
        return KOfN(**settings).sample(round, n_clients, seed)


@component
class Repeated(Attack):
    """Every attacker sends the result of some steps on the targets alone, alpha = 0 in eq. 3 of the FL-WBC paper."""

    name: ClassVar[str] = "repeated"
    steps: int = 20

    def poison(self, view: View, state: State) -> Poisoned:
        """Equal updates."""
        settings = replace(view.client, steps=self.steps, callbacks={})
        update_D = view.train_one(view.targets, settings)
        return Poisoned(update_D.expand(view.n_malicious, -1))


def prepared(model: str, seed: int, partition: dict[str, Any]) -> Federation:
    """A federation after its honest start."""
    experiment = load(
        {
            "seed": seed,
            "rounds": ATTACKED[-1] + TAIL + 1,
            "data": {"name": "fashion_mnist", "test_samples": 2000},
            "partition": {"clients": 100, "samples_per_client": 600, **partition},
            "model": model,
            "client": {"optimizer": {"name": "sgd", "lr": LR}},
            "participation": {"name": "k_of_n", "k": 10},
            "engine": "vectorized",
        }
    )
    federation = Federation(experiment)
    while federation.state.round < START:
        federation.round()
    return federation


def campaign(start: Federation, image: int, arm: dict[str, Any]) -> dict[str, Any]:
    """Confidence and accuracy round by round after the start."""
    base = start.experiment
    slots: dict[str, Any] = {"aggregator": arm.get("aggregator", "mean"), "rounds": base.rounds}
    if "wbc" in arm:
        slots["client"] = {"optimizer": {"name": "sgd", "lr": LR}, "callbacks": {"wbc": arm["wbc"]}}
    if "privacy" in arm:
        slots["defenses"] = {"privacy": arm["privacy"]}
    objective = TargetSamples(count=1)
    federation = copy(start)
    federation.experiment = load(base.to_dict() | slots).model_copy(
        update={"participation": Campaign(k=10, malicious=5), "attack": Repeated(objective=objective)}
    )
    federation.goal = objective.goal(start.data, generator(base.seed, "objective", image))
    federation.state = federation._initial_state()
    federation.state.global_D = start.state.global_D.clone()
    federation.state.previous_D = start.state.previous_D.clone()
    federation.state.round = START
    state = federation.run()
    third = [metrics["attack/confidence"] for metrics in state.history[ATTACKED[-1] - START :]]
    below = [confidence < 0.5 for confidence in third]
    return {
        "first": below.index(True) if True in below else TAIL,
        "for_good": len(below) - below[::-1].index(False) if False in below else 0,
        "accuracy": sum(metrics["global/accuracy"] for metrics in state.history[-5:]) / 5,
        "confidence": [round(metrics["attack/confidence"], 3) for metrics in state.history],
        "density": state.history[-1].get("client/wbc/density"),
        "stopped": state.stopped,
    }


def main() -> None:
    """Every arm for every seed and image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--arms", default="main", choices=ARMS)
    parser.add_argument("--partition", default="iid", choices=("iid", "shards"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(args.first, args.first + args.seeds):
        begin = time.perf_counter()
        start = prepared(args.model, seed, {"name": args.partition})
        print(f"seed {seed} started in {time.perf_counter() - begin:.0f} s", flush=True)
        for image in range(args.images):
            for label, arm in ARMS[args.arms].items():
                begin = time.perf_counter()
                row = {"model": args.model, "partition": args.partition, "seed": seed, "image": image, "arm": label}
                row |= campaign(start, image, arm)
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(seed, image, label, row["first"], row["for_good"], f"{row['accuracy']:.3f}", end=" ", flush=True)
                print(f"{time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
