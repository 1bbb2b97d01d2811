"""How the time of local training and of aggregation grows with clients C and parameters D.

    python benchmarks/bench_growth.py                   # tables on the screen, figures in growth.json beside it

Training: a round of MLP clients with 320 samples each (10 steps of 32), in lock step. D is set by the width of the hidden layer.
The last column is the exponent of growth between a row and the one before it: 1 is proportional.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from bench_clients import engine, setting
from timing import best_seconds, machine

from fl_lightning import aggregators
from fl_lightning.engines import Vectorized
from fl_lightning.models import Mlp
from fl_lightning.randomness import generator

RULES = {
    "trimmed_mean": lambda f: aggregators.TrimmedMean(n_byzantine=f),
    "krum": lambda f: aggregators.Krum(n_byzantine=f),
    "bulyan": lambda f: aggregators.Bulyan(n_byzantine=f),
    "geometric_median": lambda f: aggregators.GeometricMedian(),
}


def training(hidden: int, clients: int, repeat: int) -> tuple[int, float]:
    bench, jobs = setting(Mlp(hidden=(hidden,)), clients, 320, "cpu")
    best = best_seconds({"vectorized": lambda: engine(Vectorized(), bench, jobs)}, repeat)
    return bench.flat.dim, best["vectorized"]


def aggregation(clients: int, dimension: int, repeat: int) -> dict[str, float]:
    updates_CD = torch.randn(clients, dimension, generator=generator(0, "bench"))
    f = max(1, (clients - 3) // 5)
    rules = {name: make(f) for name, make in RULES.items()}
    return best_seconds({name: lambda rule=rule: rule(updates_CD) for name, rule in rules.items()}, repeat)


def table(title: str, by: str, points: Iterable[tuple[str, int, float]]) -> None:
    print(f"\n{title}\n\n| work | {by} | seconds | growth |\n|---|---|---|---|")
    before: dict[str, tuple[int, float]] = {}
    for work, size, seconds in points:
        growth = "-"
        if work in before:
            old_size, old_seconds = before[work]
            growth = f"{math.log(seconds / old_seconds) / math.log(size / old_size):.2f}"
        before[work] = size, seconds
        print(f"| {work} | {size:,} | {seconds:.3f} | {growth} |")


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 6_603_710])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("growth.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    in_clients, in_dimension = [], []
    for clients in args.clients:
        in_clients.append(("training", clients, training(128, clients, args.repeat)[1]))
        in_clients += [(rule, clients, best) for rule, best in aggregation(clients, 101_770, args.repeat).items()]
    in_dimension += [("training", *training(hidden, 50, args.repeat)) for hidden in args.hidden]
    for dimension in args.dimensions:
        in_dimension += [(rule, dimension, best) for rule, best in aggregation(50, dimension, args.repeat).items()]
    figures = machine("cpu", args.threads) | {"clients": in_clients, "parameters": in_dimension}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    table("In the number of clients, D = 101,770", "C", in_clients)
    table("In the number of parameters, C = 50", "D", in_dimension)


if __name__ == "__main__":
    main()
