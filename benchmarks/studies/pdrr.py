"""False and missed alarms of PDRR and of the detectors that it is compared with, round by round.

50 clients, 20 malicious, Fashion-MNIST. PDRR defends; in the rounds of `PROBES` the other detectors judge the same updates
without acting. A round counts as attacked if the undefended rule takes a crafted row or value. Without attack the mean
aggregates, and PDRR judges the same updates for every rule, also as printed. One line of JSON a round.

    python benchmarks/studies/pdrr.py results.jsonl [--rounds 100] [--part 0/2] [--only krum]
    python benchmarks/studies/pdrr.py results.jsonl --summary
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import load
from fl_lightning.defenses import Dagmm, Defense, Err, Lfr, Pdrr, Pyod, Vae
from fl_lightning.federation import Defended, Federation, Metrics, Submitted
from fl_lightning.metrics import detection
from fl_lightning.registry import registry

CLIENTS, MALICIOUS = 50, 20
PROBES = (0, 19, 49, 99)
RULES: dict[str, dict[str, Any]] = {
    "krum": {"name": "krum", "n_byzantine": 20},
    "trimmed_mean_c": {"name": "trimmed_mean", "n_byzantine": 20},
    "trimmed_mean_c/2": {"name": "trimmed_mean", "n_byzantine": 10},
    "median": {"name": "median"},
}
OTHERS: dict[str, Any] = {
    "alie": {"name": "alie", "knowledge": "full"},
    "ipm": {"name": "ipm", "knowledge": "full"},
    "label_flip": {"name": "label_flip", "objective": {"name": "label_map"}},
    "sign_flip": {"name": "sign_flip"},
}
PROBED: dict[str, Defense] = {
    "err": Err(n_byzantine=MALICIOUS),
    "lfr": Lfr(n_byzantine=MALICIOUS),
    "vae": Vae(n_byzantine=MALICIOUS),
    "dagmm": Dagmm(n_byzantine=MALICIOUS),
    "ecod": Pyod(n_byzantine=MALICIOUS, detector="ecod"),
}


class Unattacked(Federation):
    """A federation without attack, in which PDRR judges every round for every rule."""

    def defend(self, sent: Submitted) -> Defended:
        updates_CD = sent.updates_CD
        metrics: Metrics = {}
        for label, rule in RULES.items():
            context = replace(self.context(sent.weights_C), aggregator=registry("aggregator").build(rule))
            for version, defense in (("default", Pdrr()), ("printed", Pdrr(faithful=True, q=0.9))):
                if version == "default" or self.state.round in PROBES:
                    keep_C = defense.apply(updates_CD, context, {}).keep_C
                    flagged = defense.detect(updates_CD, context.aggregator, context.generator("coordinates")).flagged
                    metrics[f"{version}/{label}/false_alarm_rate"] = float((~keep_C).double().mean())
                    metrics[f"{version}/{label}/flagged"] = float(flagged.double().mean())
        left = super().defend(sent)
        return left._replace(metrics=metrics | left.metrics)


class Probed(Federation):
    """A federation in which further detectors judge the submitted updates of some rounds."""

    def defend(self, sent: Submitted) -> Defended:
        updates_CD, weights_C, poisoned_C = sent.updates_CD, sent.weights_C, sent.poisoned_C
        metrics: Metrics = {}
        metrics["undefended"] = float(self.experiment.aggregator.influence(updates_CD, weights_C)[poisoned_C].sum())
        if self.state.round in PROBES:
            for label, defense in PROBED.items():
                begin = time.perf_counter()
                verdict = defense.apply(updates_CD, self.context(weights_C), {})
                metrics[f"probe/{label}/seconds"] = time.perf_counter() - begin
                metrics |= detection(verdict.keep_C, poisoned_C, verdict.scores_C, f"probe/{label}")
        left = super().defend(sent)
        return left._replace(metrics=metrics | left.metrics)


def fang(rule: str, knowledge: str) -> dict[str, Any]:
    """The attack that is made for the rule; b as in the PDRR paper."""
    name = rule.split("_c")[0]
    extra = {} if name == "krum" else {"b": 1.05}
    return {"name": f"fang_{name}", "knowledge": knowledge, **extra}


def cases() -> list[tuple[str, float, str]]:
    """Rule, degree of heterogeneity, attack."""
    degrees = (0.5, 0.0, 1.0)
    made_for = [(rule, p, attack) for attack, p, rule in product(("full", "partial"), degrees, RULES)]
    return (
        [("every", p, "none") for p in degrees]
        + made_for
        + [(rule, 0.5, other) for rule, other in product(RULES, OTHERS)]
    )


def run(rule: str, p: float, attack: str, rounds: int, seed: int) -> list[dict[str, Any]]:
    """All rounds of one case."""
    named = None if attack == "none" else OTHERS.get(attack) or fang(rule, attack)
    others = attack in OTHERS
    experiment = load(
        {
            "seed": seed,
            "rounds": min(rounds, 30) if others else rounds,
            "data": {"name": "fashion_mnist", "validation": 2000},
            "partition": {"name": "degree", "clients": CLIENTS, "p": p, "samples_per_client": 600},
            "participation": {"name": "full", "malicious": 0 if named is None else MALICIOUS},
            "attack": named,
            "defenses": {} if named is None else {"pdrr": "pdrr"},
            "aggregator": RULES.get(rule, "mean"),
            "engine": "vectorized",
            "evaluation": {"every": 10},
        }
    )
    kind = Unattacked if named is None else Federation if others else Probed
    federation = kind(experiment)
    rows = []
    while federation.state.round < experiment.rounds and not federation.state.stopped:
        report = federation.round()
        rows.append({"rule": rule, "p": p, "attack": attack, "seed": seed, "round": report.round + 1, **report.metrics})
    return rows


def summary(path: Path) -> str:
    """A Markdown table: mean false | missed alarm rates of PDRR over the rounds that count, and over all others.

    A retreat is a round in which Fang's attack on Krum found no lambda and sent part of an honest step; it counts when Krum takes
    it. Attacks that PDRR was not made for count in every round.
    """
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        runs.setdefault((row["rule"], row["p"], row["attack"], row["seed"]), []).append(row)

    def rates(rows: list[dict[str, Any]]) -> str:
        means = [
            sum(row[f"defense/pdrr/{kind}_alarm_rate"] for row in rows) / max(1, len(rows))
            for kind in ("false", "missed")
        ]
        return f"{means[0]:.4f} / {means[1]:.4f} ({len(rows)})" if rows else "(0)"

    heads = [
        "rule",
        "p",
        "attack",
        "seed",
        "false / missed in attacked rounds (number)",
        "in retreats among them",
        "in other rounds",
    ]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for case, rows in runs.items():
        if case[2] == "none":
            rules = [rule for rule in RULES if f"default/{rule}/false_alarm_rate" in rows[0]]
            means = {rule: sum(row[f"default/{rule}/false_alarm_rate"] for row in rows) / len(rows) for rule in rules}
            cells = [f"false: {', '.join(f'{rule} {mean:.4f}' for rule, mean in means.items())} ({len(rows)})", "", ""]
        else:
            counted = [row for row in rows if row.get("undefended", 1) > 0]
            retreats = [row for row in counted if row.get("attack/retreat", 0) > 0]
            cells = [rates(counted), rates(retreats), rates([row for row in rows if row not in counted])]
        lines.append(" | ".join([*map(str, case), *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Every case that the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="print the results as a table, and run nothing")
    args = parser.parse_args()
    if args.summary:
        print(summary(args.results))
        return
    torch.set_num_threads(1)
    part, parts = map(int, args.part.split("/"))
    done = set()
    if args.results.is_file():
        lines = [json.loads(line) for line in args.results.read_text().splitlines()]
        done = {(row["rule"], row["p"], row["attack"], row["seed"]) for row in lines}
    chosen = [case for case in cases() if args.only in "/".join(map(str, case))]
    for case in chosen[part::parts]:
        if (*case, args.seed) in done:
            continue
        begin = time.perf_counter()
        rows = run(*case, args.rounds, args.seed)
        with args.results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print(*case, f"{time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
