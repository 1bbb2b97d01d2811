"""Which published findings on untargeted attacks repeat on digits, with intervals over seeds.

Digits, MLP 64-32-10, 25 clients of which 5 are malicious in every round, 55 samples each, 8 steps of 16 at 0.1, 40 rounds, full
knowledge; the figure is the accuracy's mean over the last five rounds. `absent`: the attackers send the benign mean, the fair
comparison where every client has a class of its own, and a missing client is missing data. One line of JSON a run; what is
already in the file is not run again.

    python benchmarks/studies/attack_findings.py results.jsonl [--seeds 5]
    python benchmarks/studies/attack_findings.py results.jsonl --summary
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.metrics import Interval, interval

LAST = 5
SCENE: dict[str, Any] = {
    "data": {"name": "digits"},
    "rounds": 40,
    "partition": {"name": "degree", "clients": 25, "p": 0.5, "samples_per_client": 55},
    "model": {"name": "mlp", "hidden": [32]},
    "client": {"steps": 8, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
    "participation": {"name": "full", "malicious": 5},
}
ATTACKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "absent": {"name": "min_max", "knowledge": "full", "gamma": 0.0},
    "alie": {"name": "alie", "knowledge": "full"},
    "min_max std": {"name": "min_max", "knowledge": "full", "perturbation": "std"},
    "min_max unit": {"name": "min_max", "knowledge": "full"},
    "optimal std distance": {"name": "optimal_alie", "knowledge": "full"},
    "optimal unit backward": {"name": "optimal_ipm", "knowledge": "full", "aim": "backward"},
    "mimic": {"name": "mimic", "knowledge": "full"},
    "rop": {"name": "rop", "knowledge": "full", "pi": 0.0},
}
SERVERS: dict[str, dict[str, Any]] = {
    "krum": {"name": "krum", "n_byzantine": 5},
    "multi_krum": {"name": "multi_krum", "n_byzantine": 5},
    "geometric_median": {"name": "geometric_median"},
    "centered_clipping": {"name": "centered_clipping", "tau": "auto", "steps": 1},
}


class Finding(NamedTuple):
    """The accuracy of one attack is at least so much below that of another, at one server and degree of non-iid data."""

    text: str
    p: float
    server: str
    attack: str
    against: str
    by: float


FINDINGS = (
    Finding("Min-Max (unit) against Multi-Krum", 0.5, "multi_krum", "min_max unit", "none", 0.25),
    Finding("Min-Max (unit) hurts Multi-Krum more than ALIE", 0.5, "multi_krum", "min_max unit", "alie", 0.1),
    Finding("Min-Max (std) spares Multi-Krum: unit is stronger", 0.5, "multi_krum", "min_max unit", "min_max std", 0.1),
    Finding("optimal (unit, backward) breaks Krum", 0.5, "krum", "optimal unit backward", "none", 0.5),
    Finding("optimal (unit, backward) breaks Multi-Krum", 0.5, "multi_krum", "optimal unit backward", "none", 0.5),
    Finding(
        "backward along the mean beats distance along sigma",
        0.5, "multi_krum", "optimal unit backward", "optimal std distance", 0.25,
    ),
    Finding("mimic takes the geometric median", 1.0, "geometric_median", "mimic", "absent", 0.2),
    Finding("rop takes the geometric median", 1.0, "geometric_median", "rop", "absent", 0.2),
    Finding("rop takes centered clipping", 1.0, "centered_clipping", "rop", "absent", 0.15),
)  # fmt: skip


def key(p: float, server: str, attack: str, seed: int) -> str:
    """Names one run."""
    return f"p={p:g} | {server} | {attack} | {seed}"


def accuracy(p: float, server: str, attack: str, seed: int) -> float:
    """Mean accuracy over the last rounds of one run."""
    changes = {"seed": seed, "attack": ATTACKS[attack], "aggregator": SERVERS[server], "partition.p": p}
    history = Federation(load(SCENE).override(changes)).run().history
    return sum(figures["global/accuracy"] for figures in history[-LAST:]) / LAST


def cells() -> list[tuple[float, str, str]]:
    """What the findings compare, each once."""
    found = [(one.p, one.server, attack) for one in FINDINGS for attack in (one.against, one.attack)]
    return list(dict.fromkeys(found))


def measure(path: Path, seeds: int) -> None:
    """Run what is not in the file yet, seed after seed."""
    done = read(path)
    for seed in range(seeds):
        for cell in cells():
            name = key(*cell, seed)
            if name not in done:
                line = json.dumps({"run": name, "accuracy": accuracy(*cell, seed)})
                with path.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


def read(path: Path) -> dict[str, float]:
    """Accuracies by name of the run."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["run"]: line["accuracy"] for line in lines}


def summary(path: Path) -> None:
    """Each finding with its 95 % interval, paired by seed."""
    done = read(path)
    for one in FINDINGS:
        pairs = [
            (done[other], done[own])
            for seed in range(100)
            if (other := key(one.p, one.server, one.against, seed)) in done
            if (own := key(one.p, one.server, one.attack, seed)) in done
        ]
        if not pairs:
            continue
        drop = interval([before - after for before, after in pairs])
        before, after = (interval([pair[place] for pair in pairs], (0, 1)) for place in (0, 1))
        print(f"{one.text}: {one.against} {before} -> {after}, drop {drop} (asked {one.by:g}): {verdict(drop, one.by)}")


def verdict(drop: Interval, by: float) -> str:
    """Decided by the interval of the paired difference."""
    return "repeats" if drop.low >= by else "does not repeat" if drop.high < by else "cannot be told on these seeds"


def main() -> None:
    """Measure, or tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    if not options.summary:
        measure(options.results, options.seeds)
    summary(options.results)


if __name__ == "__main__":
    main()
