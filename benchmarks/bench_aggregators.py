"""Aggregators and pre-aggregators against the plain mean, naive torch, byzfl and flwr: ratios measured in one process.

    python benchmarks/bench_aggregators.py                     # table on the screen, figures in aggregators.json beside it
    python benchmarks/bench_aggregators.py --device cuda --out benchmarks/aggregators-gpu.json

The plain mean reads the matrix once: it is the floor that memory bandwidth sets. Contenders take turns, the best time of
each counts. "naive" is the textbook version in a few lines of torch. byzfl's geometric median stops after 3 steps, ours when
it has converged. flwr has no geometric median and byzfl no Bulyan; flwr's Bulyan takes minutes at 1,663,370 parameters and is
only timed below 200,000. byzfl's MDA tries all subsets and is timed with ten rows only; its CAF takes one power step, ours the
exact eigenvector. A pre-aggregator is timed with the mean after it. Rows of the matrix are independent normal numbers.
"""

import argparse
import json
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import best_seconds, machine
from torch import Tensor

from fl_lightning import aggregators as ours
from fl_lightning.randomness import generator

Contenders = dict[str, Callable[[], object]]


def naive_krum_scores(updates_CD: Tensor, f: int) -> Tensor:
    distances_CC = torch.cdist(updates_CD, updates_CD).square()
    return distances_CC.sort(1).values[:, 1 : len(updates_CD) - f - 1].sum(1)


def naive_bulyan(updates_CD: Tensor, f: int) -> Tensor:
    n_rows = len(updates_CD)
    distances_CC = torch.cdist(updates_CD, updates_CD).square()
    left, selected = list(range(n_rows)), []
    for _ in range(n_rows - 2 * f):
        scores = distances_CC[left][:, left].sort(1).values[:, 1 : max(2, len(left) - f - 1)].sum(1)
        selected.append(left.pop(int(scores.argmin())))
    chosen = updates_CD[selected]
    near = (chosen - chosen.quantile(0.5, dim=0)).abs().argsort(0)[: n_rows - 4 * f]
    return chosen.gather(0, near).mean(0)


def naive_geometric_median(updates_CD: Tensor, steps: int = 3) -> Tensor:
    point = updates_CD.mean(0)
    for _ in range(steps):
        shares = 1 / (updates_CD - point).norm(dim=1).clamp(min=1e-6)
        point = (shares / shares.sum()) @ updates_CD
    return point


def contenders(updates_CD: Tensor, f: int) -> dict[str, Contenders]:
    """For every rule: who computes it."""
    x, n_rows = updates_CD, len(updates_CD)
    table: dict[str, Contenders] = {
        "mean": {"ours": lambda: ours.Mean()(x)},
        "trimmed_mean": {
            "ours": lambda: ours.TrimmedMean(n_byzantine=f)(x),
            "naive": lambda: x.sort(0).values[f : n_rows - f].mean(0),
        },
        "median": {"ours": lambda: ours.Median()(x), "naive": lambda: x.sort(0).values[n_rows // 2 - 1 :][:2].mean(0)},
        "krum": {
            "ours": lambda: ours.Krum(n_byzantine=f)(x),
            "naive": lambda: x[naive_krum_scores(x, f).argmin()],
        },
        "multi_krum": {
            "ours": lambda: ours.MultiKrum(n_byzantine=f)(x),
            "naive": lambda: x[naive_krum_scores(x, f).argsort()[: n_rows - f]].mean(0),
        },
        "bulyan": {"ours": lambda: ours.Bulyan(n_byzantine=f)(x), "naive": lambda: naive_bulyan(x, f)},
        "geometric_median": {
            "ours": lambda: ours.GeometricMedian()(x),
            "naive": lambda: naive_geometric_median(x),
        },
    }
    add_byzfl(table, x, f)
    if x.device.type == "cpu":
        add_flwr(table, x, f)
    return table


def add_byzfl(table: dict[str, Contenders], x: Tensor, f: int) -> None:
    """byzfl's rules, and ours where only the two are compared."""
    try:
        import byzfl
    except ImportError:
        print("byzfl is not installed: left out", file=sys.stderr)
        return
    average = byzfl.Average()
    rules = {
        "mean": average,
        "trimmed_mean": byzfl.TrMean(f=f),
        "median": byzfl.Median(),
        "krum": byzfl.Krum(f=f),
        "multi_krum": byzfl.MultiKrum(f=f),
        "geometric_median": byzfl.GeometricMedian(),
        "meamed": byzfl.Meamed(f=f),
        "centered_clipping": byzfl.CenteredClipping(L=1, tau=10.0),
        "monna": byzfl.MoNNA(f=f, idx=0),
        "caf": byzfl.CAF(f=f),
    }
    mixers = {
        "nnm, mean": byzfl.NNM(f=f),
        "arc, mean": byzfl.ARC(f=f),
        "clip, mean": byzfl.Clipping(c=2.0),
        "bucketing, mean": byzfl.Bucketing(s=2),
    }
    if len(x) <= 10:
        rules["mda"] = byzfl.MDA(f=f)
    only_here = {
        "meamed": ours.Meamed(n_byzantine=f),
        "centered_clipping": ours.CenteredClipping(tau=10.0),
        "monna": ours.Monna(n_byzantine=f, index=0),
        "caf": ours.Caf(n_byzantine=f),
        "mda": ours.Mda(n_byzantine=f),
        "nnm, mean": ours.Mixed(ours.Mean(), (ours.Nnm(n_byzantine=f),)),
        "arc, mean": ours.Mixed(ours.Mean(), (ours.Arc(n_byzantine=f),)),
        "clip, mean": ours.Mixed(ours.Mean(), (ours.Clip(max_norm=2.0),)),
        "bucketing, mean": ours.Mixed(ours.Mean(), (ours.Bucketing(s=2),)),
    }
    for name, rule in only_here.items():
        table[name] = {"ours": lambda rule=rule: rule(x)}
    for name, rule in rules.items():
        if name == "centered_clipping":  # it remembers the last call
            table[name]["byzfl"] = lambda rule=rule: forgetful(rule)(x)
        else:
            table[name]["byzfl"] = lambda rule=rule: rule(x)
    for name, mixer in mixers.items():  # byzfl's clipping writes into its input
        table[name]["byzfl"] = lambda mixer=mixer, name=name: average(
            mixer(x.clone() if name.startswith(("arc", "clip")) else x)
        )


def forgetful(rule: Any) -> Any:
    """The rule without what it remembers of its last call."""
    rule.m = None
    return rule


def add_flwr(table: dict[str, Contenders], x: Tensor, f: int) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import flwr.server.strategy.aggregate as flwr
    except ImportError:
        print("flwr is not installed: left out", file=sys.stderr)
        return
    clients, n_rows = [([row.numpy()], 1) for row in x], len(x)
    table["mean"]["flwr"] = lambda: flwr.aggregate(clients)
    table["trimmed_mean"]["flwr"] = lambda: flwr.aggregate_trimmed_avg(clients, (f + 0.5) / n_rows)
    table["median"]["flwr"] = lambda: flwr.aggregate_median(clients)
    table["krum"]["flwr"] = lambda: flwr.aggregate_krum(clients, f, 0)
    table["multi_krum"]["flwr"] = lambda: flwr.aggregate_krum(clients, f, n_rows - f)
    if x.shape[1] < 200_000 and n_rows > 10:
        table["bulyan"]["flwr"] = lambda: flwr.aggregate_bulyan(list(clients), f, flwr.aggregate_krum, to_keep=0)


def peak_memory(n_clients: int, f: int, dimension: int) -> float:
    """Highest resident memory during a trimmed mean, beyond what was resident before it, as a share of the input."""
    updates_CD = torch.empty(n_clients, dimension).uniform_(-1, 1, generator=generator(0, "bench"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours.TrimmedMean(n_byzantine=f)(updates_CD)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / updates_CD.nbytes


def markdown(rows: list[dict[str, object]]) -> str:
    """The table: milliseconds of ours, multiples of the plain mean, and how many times slower the others are."""

    def times(row: dict[str, object], name: str) -> str:
        value = row.get(name)
        return "-" if value is None else f"{value / row['ours']:.1f}x"

    lines = [
        "| rule | C | D | ours, ms | of the plain mean | naive torch | byzfl | flwr |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['rule']} | {row['clients']} | {row['dimension']:,} | {1000 * row['ours']:.3g} "
        rest = " | ".join(times(row, name) for name in ("naive", "byzfl", "flwr"))
        lines.append(f"{head}| {row['ours'] / row['floor']:.1f}x | {rest} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--byzantine", type=int, default=10)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2_410, 101_770, 1_663_370])
    parser.add_argument("--few", type=int, nargs="+", default=[2_410, 101_770], help="dimensions with ten clients, too")
    parser.add_argument("--memory-dimension", type=int, default=6_603_710, help="0: do not measure memory")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds a contender may use up before it drops out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("aggregators.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    peak = None
    if args.memory_dimension and args.device == "cpu":  # first, while nothing else has been resident
        peak = peak_memory(args.clients, args.byzantine, args.memory_dimension)
    rows: list[dict[str, object]] = []
    sizes = [(10, 2, dimension) for dimension in args.few]
    sizes += [(args.clients, args.byzantine, dimension) for dimension in args.dimensions]
    for clients, f, dimension in sizes:
        updates_CD = torch.randn(clients, dimension, generator=generator(0, "bench")).to(args.device)
        for rule, functions in contenders(updates_CD, f).items():
            if rule == "bulyan" and clients < 4 * f + 3:
                continue
            floor = {"floor": lambda updates_CD=updates_CD: updates_CD.mean(0)}
            best = best_seconds(floor | functions, args.repeat, args.device, args.budget)
            rows.append({"rule": rule, "clients": clients, "dimension": dimension, **best})
            print(rows[-1], file=sys.stderr, flush=True)
    on = machine(args.device, args.threads)
    args.out.write_text(json.dumps(on | {"peak_memory_of_trimmed_mean": peak, "seconds": rows}, indent=1) + "\n")
    print(f"\n{on['device']}, torch {on['torch']}, f = {args.byzantine}, best of {args.repeat}\n\n{markdown(rows)}")
    if peak is not None:
        print(
            f"\nPeak memory of the trimmed mean at D = {args.memory_dimension:,}: {peak:.0%} of the input on top of it."
        )


if __name__ == "__main__":
    main()
