"""Seconds of processor time for PDRR's detection, ERR and plain aggregation: 50 models of the PDRR paper's network.

python benchmarks/bench_pdrr.py [--validation 200]        # figures in pdrr.json beside it
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Krum, Median, TrimmedMean
from fl_lightning.data import Samples
from fl_lightning.defenses import Pdrr, ServerContext
from fl_lightning.defenses._base import fitting
from fl_lightning.models import FlatNetwork, PdrrCnn
from fl_lightning.randomness import generator

CLIENTS, MALICIOUS = 50, 20
RULES: tuple[Aggregator, ...] = (
    Krum(n_byzantine=MALICIOUS),
    TrimmedMean(n_byzantine=MALICIOUS),
    TrimmedMean(n_byzantine=MALICIOUS // 2),
    Median(),
)


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """The least processor time of some runs: other programs on the machine do not count."""
    taken = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    return min(taken)


def left_out(rule: Aggregator, updates_CD: Tensor, flat: FlatNetwork, x: Tensor) -> Tensor:
    """Scores of the model without the first row."""
    others = torch.arange(len(updates_CD)) != 0
    return flat.scores(flat.vector() + fitting(rule, len(updates_CD) - 1)(updates_CD[others]).update, x)


def main() -> None:
    """One line a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", type=int, default=200, help="the server's samples; the paper has 2002")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("pdrr.json"))
    args = parser.parse_args()
    rows = []
    torch.set_num_threads(1)
    flat = FlatNetwork(PdrrCnn().build((1, 28, 28), 62), "cross_entropy")
    updates_CD = 1e-3 * torch.randn(CLIENTS, flat.dim, generator=generator(0, "updates"))
    x = torch.rand(args.validation, 1, 28, 28, generator=generator(0, "x"))
    print(
        f"{CLIENTS} models of {flat.dim:,} parameters, {args.validation} validation samples, seconds of processor time"
    )
    for rule in RULES:
        context = ServerContext(
            round=0,
            global_D=flat.vector(),
            previous_D=flat.vector(),
            aggregator=rule,
            weights_C=torch.ones(CLIENTS),
            validation=Samples(x, torch.randint(62, (len(x),), generator=generator(0, "y"))),
            predict=flat.scores,
            losses=flat.losses,
            gradient=flat.gradient,
            generator=lambda purpose: generator(0, purpose),
        )
        plain = seconds(lambda rule=rule: rule(updates_CD))
        sampled = seconds(lambda context=context: Pdrr().apply(updates_CD, context, {}))
        every = seconds(lambda context=context: Pdrr(coordinates=None).apply(updates_CD, context, {}))
        err = (CLIENTS + 1) * seconds(lambda rule=rule: left_out(rule, updates_CD, flat, x))
        label = f"{rule.name} {getattr(rule, 'n_byzantine', '')}".strip()
        rows.append({"rule": label, "aggregation": plain, "pdrr": sampled, "every coordinate": every, "err": err})
        print(
            f"{rule.name:13s} {getattr(rule, 'n_byzantine', '')!s:3s} aggregation {plain:6.2f}  PDRR {sampled:6.2f} "
            f"({sampled / plain:.2f} x)  PDRR on all coordinates {every:6.2f} ({every / plain:.2f} x)  ERR {err:7.1f} "
            f"(PDRR / ERR {sampled / err:.4f})",
            flush=True,
        )
    args.out.write_text(json.dumps(machine("cpu", 1) | {"seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
