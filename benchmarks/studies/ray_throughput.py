"""Clients a second on Ray: one worker and two, each with one thread, on CNN clients; wants two idle cores.

Turns of a round each, in alternation, so that what else the machine does meets both; the figure is the median round. Workers
are started, and warm, before anything is measured.

    python benchmarks/studies/ray_throughput.py [--clients 16] [--turns 5]
"""

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from fl_lightning.config import load
from fl_lightning.engines import _ray
from fl_lightning.federation import Federation


def seconds(federation: Federation, turns: int) -> list[float]:
    """Seconds of each round's training; the first round, which starts the workers, is not counted."""
    federation.round()
    found = []
    for _ in range(turns):
        begin = time.perf_counter()
        federation.submitted()
        found.append(time.perf_counter() - begin)
    return found


def main() -> None:
    """One worker, two workers, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = [
        "model=wbc_fmnist_cnn",
        "attack=null",
        "aggregator=mean",
        "participation=full",
        f"partition={{name: iid, clients: {options.clients}, samples_per_client: 600}}",
    ]
    data = "{name: mnist, train_samples: 10000, test_samples: 100}"
    federations = {
        workers: Federation(load("mnist", [*settings, f"data={data}", f"engine={{name: ray, workers: {workers}}}"]))
        for workers in (1, 2)
    }
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.blocks):
        for workers, federation in federations.items():
            found[workers] += seconds(federation, options.turns)
    _ray.dismiss()
    rates = {workers: options.clients / statistics.median(rounds) for workers, rounds in found.items()}
    print(
        f"one worker {rates[1]:.2f} clients a second, two workers {rates[2]:.2f}: {rates[2] / rates[1]:.2f} times as many"
    )
    print({workers: [round(one, 2) for one in rounds] for workers, rounds in found.items()})


if __name__ == "__main__":
    main()
