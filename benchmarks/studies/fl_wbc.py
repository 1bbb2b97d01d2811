"""How long a repeated attack survives under FL-WBC, robust rules and differential privacy.

Fashion-MNIST, 100 clients x 600 samples, 10 a round, sgd 0.05, one local epoch of 19 steps. From a federation of 25 honest rounds
on, five of ten clients repeat the same dirty-labelled image in every fourth round, 8 times or as asked: 20 steps on that image
alone. Mitigation rounds of an attack: how many rounds after it the confidence in the wished label first lies below one half, at
most until the next attack, or until the end. One line of JSON for each image, seed and arm. The summary adds the rounds of
FL-WBC over those of the others, pair by pair.

    python benchmarks/studies/fl_wbc.py results.jsonl [--model mlp] [--arms main] [--images 5] [--attacks 8]
    python benchmarks/studies/fl_wbc.py results.jsonl --summary
"""

import argparse
import json
from copy import copy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from fl_lightning.attacks import Attack, Poisoned, TargetSamples, View
from fl_lightning.config import load
from fl_lightning.defenses import State
from fl_lightning.federation import Federation
from fl_lightning.models import Mlp, Model, WbcFmnistCnn
from fl_lightning.models._layers import cnn
from fl_lightning.participation import Cohort, FromRound, KOfN, Once
from fl_lightning.randomness import generator

START, EVERY, LR = 25, 4, 0.05
THIRD = 2
WBC = {"name": "fl_wbc", "std": 0.4}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "main": {"none": {}, "fl_wbc 0.4": {"wbc": WBC}},
    "rules": {
        "median": {"aggregator": {"name": "median"}},
        "trimmed_mean 2": {"aggregator": {"name": "trimmed_mean", "n_byzantine": 2}},
        "fl_wbc 0.4 + median": {"wbc": WBC, "aggregator": {"name": "median"}},
    },
    "control": {"fl_wbc 0.4, mask 1": {"wbc": WBC | {"mask": False}}},
    "trade-off": {
        **{f"fl_wbc {std}": {"wbc": WBC | {"std": std}} for std in (0.2, 0.7)},
        **{f"cdp {std} x lr": {"privacy": {"name": "cdp", "std": std, "rate": LR}} for std in (0.4, 0.7)},
        **{f"ldp {std} x lr": {"privacy": {"name": "ldp", "std": std, "rate": LR}} for std in (1.0, 2.0)},
        "cdp 0.1": {"privacy": {"name": "cdp", "std": 0.1}},
        "ldp 0.1": {"privacy": {"name": "ldp", "std": 0.1}},
    },
}

RIVALS = {
    "fl_wbc 0.4": ("none", "median", "trimmed_mean 2", *(arm for arm in ARMS["trade-off"] if "dp" in arm)),
    "fl_wbc 0.4 + median": ("none", "median"),
}
"""Whose mitigation rounds an arm's are divided by."""


class Plan(NamedTuple):
    """How often the image is repeated, and how long the last time is watched."""

    attacks: int
    tail: int

    @property
    def attacked(self) -> tuple[int, ...]:
        """The adversarial rounds."""
        return tuple(range(START, START + EVERY * self.attacks, EVERY))

    @property
    def rounds(self) -> int:
        """Of the whole federation."""
        return self.attacked[-1] + self.tail + 1

    def mitigation(self, confidence: list[float], attack: int) -> int:
        """Rounds after an attack, from 0, until the confidence lies below one half; all that were seen if it never does."""
        begin, *following = (round - START for round in (*self.attacked[attack:], self.rounds))
        below = [value < 0.5 for value in confidence[begin : following[0]]]
        return below.index(True) if True in below else len(below)


class SmallCnn(Model):
    """FL-WBC's CNN with half as many channels: 11,274 parameters."""

    name: ClassVar[str] = "small_cnn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """`[B, channels, height, width]` to `[B, classes]`."""
        return cnn(shape, classes, channels=(8, 16), padding=(2, 2))


class Campaign(KOfN):
    """Attacks in given rounds.

    Attributes:
        attacked: the adversarial rounds.
    """

    name: ClassVar[str] = "campaign"
    attacked: tuple[int, ...] = ()

    def sample(self, round: int, n_clients: int, seed: int) -> Cohort:
        """As `k_of_n`, forced."""
        schedule = FromRound(round=0) if round in self.attacked else Once(round=10**9)
        settings = {"k": self.k, "malicious": self.malicious, "forced": True, "schedule": schedule}
        return KOfN(**settings).sample(round, n_clients, seed)


class Repeated(Attack):
    """Every attacker sends the result of some steps on the targets alone, alpha = 0 in eq. 3 of the FL-WBC paper."""

    name: ClassVar[str] = "repeated"
    steps: int = 20

    def poison(self, view: View, state: State) -> Poisoned:
        """Equal updates."""
        settings = replace(view.client, steps=self.steps, callbacks={})
        update_D = view.train_one(view.targets, settings)
        return Poisoned(update_D.expand(view.n_malicious, -1))


MODELS: dict[str, Model] = {"mlp": Mlp(), "small_cnn": SmallCnn(), "wbc_fmnist_cnn": WbcFmnistCnn()}


def prepared(model: str, seed: int, partition: str, plan: Plan) -> Federation:
    """A federation after its honest start."""
    experiment = load(
        {
            "seed": seed,
            "rounds": plan.rounds,
            "data": {"name": "fashion_mnist", "test_samples": 2000},
            "partition": {"clients": 100, "samples_per_client": 600, "name": partition},
            "client": {"optimizer": {"name": "sgd", "lr": LR}},
            "participation": {"name": "k_of_n", "k": 10},
            "engine": "vectorized",
        }
    )
    federation = Federation(experiment.model_copy(update={"model": MODELS[model]}))
    while federation.state.round < START:
        federation.round()
    return federation


def campaign(start: Federation, image: int, arm: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Confidence and accuracy round by round after the start."""
    base = start.experiment
    slots: dict[str, Any] = {"model": "mlp", "aggregator": arm.get("aggregator", "mean"), "rounds": base.rounds}
    if "wbc" in arm:
        slots["client"] = {"optimizer": {"name": "sgd", "lr": LR}, "callbacks": {"wbc": arm["wbc"]}}
    if "privacy" in arm:
        slots["defenses"] = {"privacy": arm["privacy"]}
    objective = TargetSamples(count=1)
    attack = Repeated(objective=objective)
    federation = copy(start)
    federation.experiment = load(base.to_dict() | slots).model_copy(
        update={
            "model": base.model,
            "participation": Campaign(k=10, malicious=5, attacked=plan.attacked),
            "attack": attack,
        }
    )
    federation.goal = objective.goal(start.data, generator(base.seed, "objective", image))
    federation.state = federation.initial_state()
    federation.state.global_D = start.state.global_D.clone()
    federation.state.previous_D = start.state.previous_D.clone()
    federation.state.round = START
    state = federation.run()
    densities = [metrics["client/wbc/density"] for metrics in state.history if "client/wbc/density" in metrics]
    return {
        "accuracy": sum(metrics["global/accuracy"] for metrics in state.history[-5:]) / 5,
        "confidence": [round(metrics["attack/confidence"], 3) for metrics in state.history],
        "density": sum(densities) / len(densities) if densities else None,
        "stopped": state.stopped,
    }


Runs = dict[tuple[int, int], dict[str, Any]]


def arms_of(path: Path) -> dict[tuple[str, str, Plan, str], Runs]:
    """(model, partition, plan, arm) -> (image, seed) -> what was seen."""
    arms: dict[tuple[str, str, Plan, str], Runs] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        plan = Plan(row["attacks"], row["tail"])
        arms.setdefault((row["model"], row["partition"], plan, row["arm"]), {})[row["image"], row["seed"]] = row
    return arms


def summary(path: Path) -> str:
    """A Markdown table: medians over the (image, seed) that an arm shares with no defence, with 95 % bootstrap intervals."""
    runs = arms_of(path)
    random = generator(0, "bootstrap")
    heads = [
        "arm",
        "pairs",
        "rounds after the third attack and later ones",
        "after the last",
        "of none's",
        "accuracy",
        "minus none's",
        "mask",
    ]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for (model, partition, plan, arm), own in runs.items():
        none, later = runs[model, partition, plan, "none"], range(THIRD, plan.attacks)
        pairs = sorted(own.keys() & none.keys())
        draws_NP = torch.randint(len(pairs), (4000, len(pairs)), generator=random)

        rounds_PK, usual_PK = (
            torch.tensor([[plan.mitigation(of[pair]["confidence"], k) for k in later] for pair in pairs]).double()
            for of in (own, none)
        )
        last_P, usual_P = rounds_PK[:, -1], usual_PK[:, -1]
        ratio_N = middle(last_P, draws_NP) / middle(usual_P, draws_NP).clamp(min=1)
        loss_P = torch.tensor([100 * (own[pair]["accuracy"] - none[pair]["accuracy"]) for pair in pairs])
        densities = [own[pair]["density"] or 0 for pair in pairs]
        cells = (
            f"{arm} ({model}, {partition}, {plan.attacks} attacks)",
            str(len(pairs)),
            " ".join(f"{value:g}" for value in rounds_PK.quantile(0.5, dim=0).tolist()),
            f"{last_P.quantile(0.5):g} {interval(middle(last_P, draws_NP))}",
            f"{last_P.quantile(0.5) / usual_P.quantile(0.5).clamp(min=1):.2f} {interval(ratio_N)}",
            f"{sum(100 * own[pair]['accuracy'] for pair in pairs) / len(pairs):.1f}",
            f"{loss_P.mean():+.1f} {interval(loss_P[draws_NP].mean(1))}",
            f"{sum(densities) / len(densities):.3f}" if any(densities) else "",
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def ratios(path: Path) -> str:
    """A Markdown table: mitigation rounds of FL-WBC over those of other arms, for the (image, seed) that both have.

    From an attack on: the rounds after it and all later ones together, each watched until the next attack at most. The median
    of the paired ratios, and the ratio of the medians, with 95 % bootstrap intervals. A pair in which nothing lasts counts as
    one round.
    """
    runs = arms_of(path)
    random = generator(0, "bootstrap")
    heads = ["arm", "over", "pairs", "from attack", "median of ratios", "ratio of medians", "accuracy difference"]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for model, partition, plan, arm in runs:
        for rival in RIVALS.get(arm, ()):
            own, other = runs[model, partition, plan, arm], runs.get((model, partition, plan, rival), {})
            pairs = sorted(own.keys() & other.keys())
            if not pairs:
                continue
            draws_NP = torch.randint(len(pairs), (4000, len(pairs)), generator=random)
            loss_P = torch.tensor([100 * (own[pair]["accuracy"] - other[pair]["accuracy"]) for pair in pairs])
            for first in sorted({THIRD, plan.attacks - 1}):
                own_P, other_P = (
                    torch.tensor(
                        [
                            sum(plan.mitigation(of[p]["confidence"], k) for k in range(first, plan.attacks))
                            for p in pairs
                        ]
                    )
                    .double()
                    .clamp(min=1)
                    for of in (own, other)
                )
                paired_P, whole_N = own_P / other_P, middle(own_P, draws_NP) / middle(other_P, draws_NP)
                cells = (
                    f"{arm} ({model}, {partition}, {plan.attacks} attacks)",
                    rival,
                    str(len(pairs)),
                    str(first + 1),
                    f"{paired_P.quantile(0.5):.2f} {interval(middle(paired_P, draws_NP))}",
                    f"{own_P.quantile(0.5) / other_P.quantile(0.5):.2f} {interval(whole_N)}",
                    f"{loss_P.mean():+.1f} {interval(loss_P[draws_NP].mean(1))}",
                )
                lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def middle(values_P: torch.Tensor, draws_NP: torch.Tensor) -> torch.Tensor:
    """`[N]` the median of every bootstrap sample."""
    return values_P.double()[draws_NP].quantile(0.5, dim=1)


def interval(statistics_N: torch.Tensor) -> str:
    """Where the middle 95 % lie."""
    low, high = statistics_N.quantile(torch.tensor([0.025, 0.975], dtype=statistics_N.dtype)).tolist()
    return f"[{low:.3g}, {high:.3g}]"


def main() -> None:
    """Every arm for every image and seed that the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", default="mlp", choices=MODELS)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first image")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="main", choices=ARMS)
    parser.add_argument("--attacks", type=int, default=8, help="at least 3")
    parser.add_argument("--tail", type=int, default=30, help="rounds watched after the last attack")
    parser.add_argument("--partition", default="iid", choices=("iid", "shards"))
    parser.add_argument("--summary", action="store_true", help="print the results as a table, and run nothing")
    args = parser.parse_args()
    if args.summary:
        print(summary(args.results), ratios(args.results), sep="\n\n")
        return
    torch.set_num_threads(1)
    rows = map(json.loads, args.results.read_text().splitlines()) if args.results.is_file() else ()
    done = {
        tuple(row[name] for name in ("model", "partition", "seed", "image", "arm", "attacks", "tail")) for row in rows
    }
    plan = Plan(args.attacks, args.tail)
    starts: dict[int, Federation] = {}
    for image, seed, (label, arm) in product(
        range(args.first, args.first + args.images), range(args.seeds), ARMS[args.arms].items()
    ):
        if (args.model, args.partition, seed, image, label, *plan) in done:
            continue
        if seed not in starts:
            starts[seed] = prepared(args.model, seed, args.partition, plan)
        row = {"model": args.model, "partition": args.partition, "seed": seed, "image": image, "arm": label}
        row |= plan._asdict() | campaign(starts[seed], image, arm, plan)
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rounds = [plan.mitigation(row["confidence"], attack) for attack in range(plan.attacks)]
        print(image, seed, label, *rounds, f"{row['accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()
