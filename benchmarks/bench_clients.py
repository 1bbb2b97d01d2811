"""Local training of a whole round: engines against a loop by hand and byzfl's clients, ratios from one process.

    python benchmarks/bench_clients.py                          # table on the screen, figures in clients.json beside it
    python benchmarks/bench_clients.py --accelerator gpu --out benchmarks/clients-gpu.json

Clients hold synthetic images of the size of MNIST, batch 32, one local epoch of SGD. Contenders take turns, the best time of
each counts. "matmul floor" is the time of the matrix products of all clients' forward and backward passes alone, as batched
products over the clients. byzfl's client does the same local steps with its own data loader.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import best_seconds, machine
from torch import nn

from fl_lightning.clients import Client, Sgd
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Engine, Job, LocalRound, Sequential, SharedTrainer, TrainerSettings, Vectorized
from fl_lightning.models import FlatNetwork, Lenet5, Mlp, Model, WbcFmnistCnn
from fl_lightning.randomness import generator

MODELS: dict[str, Model] = {"mlp": Mlp(hidden=(128,)), "wbc_fmnist_cnn": WbcFmnistCnn(), "lenet5": Lenet5()}
CLIENT = Client(batch_size=32, optimizer=Sgd(lr=0.05))


def setting(model: Model, n_clients: int, samples: int, accelerator: str) -> tuple[Bench, list[Job]]:
    draws = generator(0, "bench")
    trainer = SharedTrainer(TrainerSettings(accelerator=accelerator))
    network = model.build((1, 28, 28), 10).to(trainer.device)
    total = n_clients * samples
    data = Samples(torch.rand(total, 1, 28, 28, generator=draws), torch.randint(10, (total,), generator=draws))
    data = data.to(trainer.device)
    parts = torch.randperm(total, generator=draws).to(trainer.device).split(samples)
    return Bench(FlatNetwork(network, "cross_entropy"), trainer, 0), [
        Job(c, data, rows) for c, rows in enumerate(parts)
    ]


def by_hand(bench: Bench, jobs: list[Job]) -> torch.Tensor:
    """What one writes without any framework: every client after the other."""
    network, start = copy.deepcopy(bench.flat.network), bench.flat.vector()
    updates = start.new_empty(len(jobs), len(start))
    for row, job in zip(updates, jobs, strict=True):
        nn.utils.vector_to_parameters(start.clone(), network.parameters())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for rows in bench.plan(job, CLIENT, 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(job.samples.x[rows]), job.samples.y[rows]).backward()
            optimizer.step()
        torch.sub(nn.utils.parameters_to_vector(network.parameters()).detach(), start, out=row)
    return updates


def engine(own: Engine, bench: Bench, jobs: list[Job]) -> torch.Tensor:
    return own.train(bench, LocalRound(bench.flat.vector(), jobs, CLIENT, 0))


def byzfl_clients(model: Model, jobs: list[Job]) -> Callable[[], None] | None:
    """byzfl's own clients, one after the other, each with its data loader; None where byzfl is not installed."""
    try:
        from byzfl.fed_framework import Client as ByzflClient
    except ImportError:
        return None
    clients = []
    for job in jobs:
        own = torch.utils.data.TensorDataset(job.samples.x[job.rows], job.samples.y[job.rows])
        loader = torch.utils.data.DataLoader(own, batch_size=CLIENT.batch_size, shuffle=True)
        params: dict[str, Any] = {"model_name": "fc_mnist", "device": "cpu", "loss_name": "CrossEntropyLoss"}
        params |= {"LabelFlipping": False, "nb_labels": 10, "momentum": 0.0, "training_dataloader": loader}
        client = ByzflClient(params | {"store_per_client_metrics": False})
        client.model = model.build((1, 28, 28), 10)
        clients.append((client, torch.optim.SGD(client.model.parameters(), lr=0.05), len(loader)))

    def work() -> None:
        for client, optimizer, steps in clients:
            for _ in range(steps):
                client.compute_gradients()
                optimizer.step()

    return work


def matmul_floor(n_clients: int, samples: int) -> Callable[[], None]:
    """The products of an MLP 784-128-10 alone: forward, gradients of weights, gradient of the hidden layer."""
    x, w1 = torch.rand(n_clients, 32, 784), torch.rand(n_clients, 784, 128)
    h, w2, d = torch.rand(n_clients, 32, 128), torch.rand(n_clients, 128, 10), torch.rand(n_clients, 32, 10)

    def work() -> None:
        for _ in range(-(-samples // 32)):
            x.bmm(w1), h.bmm(w2), d.bmm(w2.mT), h.mT.bmm(d), x.mT.bmm(h)

    return work


def start_up(repeat: int = 5) -> float:
    """Seconds of `fl-lightning --help`."""
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fl_lightning.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[50])
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["mlp", "wbc_fmnist_cnn"])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--budget", type=float, default=25.0, help="seconds a contender may use up before it drops out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("clients.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows: list[dict[str, Any]] = []
    for name in args.models:
        for n_clients in args.clients:
            bench, jobs = setting(MODELS[name], n_clients, args.samples, args.accelerator)
            contenders: dict[str, Callable[[], Any]] = {
                "by hand": lambda bench=bench, jobs=jobs: by_hand(bench, jobs),
                "sequential": lambda bench=bench, jobs=jobs: engine(Sequential(), bench, jobs),
                "vectorized": lambda bench=bench, jobs=jobs: engine(Vectorized(), bench, jobs),
            }
            if args.accelerator == "cpu":
                if byzfl := byzfl_clients(MODELS[name], jobs):
                    contenders["byzfl"] = byzfl
                if name == "mlp":
                    contenders["matmul floor"] = matmul_floor(n_clients, args.samples)
            apart = (by_hand(bench, jobs) - engine(Vectorized(), bench, jobs)).abs().max()
            best = best_seconds(contenders, args.repeat, bench.trainer.device.type, args.budget)
            rows.append({"model": name, "clients": n_clients, "samples": args.samples, "apart": float(apart)} | best)
            print(rows[-1], file=sys.stderr, flush=True)
    on = machine("cuda" if args.accelerator == "gpu" else "cpu", args.threads)
    figures: dict[str, Any] = on | {"help_seconds": start_up(), "seconds": rows}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{on['device']}, torch {on['torch']}, {args.samples} samples a client, best of {args.repeat}\n")
    print(
        "| model | clients | by hand, s | sequential | vectorized | byzfl | matmul floor |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        hand = row["by hand"]
        shown = (row.get(name) for name in ("sequential", "vectorized", "byzfl", "matmul floor"))
        others = ["-" if one is None else f"{one:.3f} ({hand / one:.2f}x)" for one in shown]
        print(f"| {row['model']} | {row['clients']} | {hand:.3f} | " + " | ".join(others) + " |")
    print("\n(...x): how many times as fast as by hand. fl-lightning --help:", f"{figures['help_seconds']:.2f} s")


if __name__ == "__main__":
    main()
