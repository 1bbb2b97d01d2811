"""Clients that are LightningModules of a user's own: the module loop against a Lightning loop by hand, ratios from one process.

    python benchmarks/bench_modules.py                          # table on the screen, figures in modules.json beside it

"by hand" is what one writes without this package: one Trainer for all clients, its loops rewound for each, the global weights
loaded into the module, `fit`, and the update taken. Both train the same batches to the same updates, which is checked. Contenders
take turns, the best processor time of each counts.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from timing import best_seconds, machine
from torch import nn

from fl_lightning.clients import Client
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Job, LocalRound, Sequential, SharedTrainer, TrainerSettings
from fl_lightning.examples.tabular import TabularClassifier
from fl_lightning.examples.text import TextClassifier
from fl_lightning.models import FlatNetwork, Lightning
from fl_lightning.randomness import generator

CLIENT = Client(loop="module", batch_size=32)
WAYS: dict[str, tuple[Lightning, tuple[int, ...]]] = {
    "table": (Lightning(module=TabularClassifier, args={"features": 20, "classes": 5, "dropout": 0.0}), (20,)),
    "text": (Lightning(module=TextClassifier, args={"vocabulary": 200, "classes": 5}), (16,)),
}


def setting(name: str, n_clients: int, samples: int) -> tuple[Bench, list[Job]]:
    draws = generator(0, "bench")
    model, shape = WAYS[name]
    total = n_clients * samples
    x = torch.rand(total, *shape, generator=draws)
    if name == "text":
        x = (x * 199).long() + 1
    data = Samples(x, torch.randint(5, (total,), generator=draws))
    torch.manual_seed(0)
    flat = FlatNetwork(model.network(shape, 5), "cross_entropy")
    parts = torch.randperm(total, generator=draws).split(samples)
    jobs = [Job(client, data, rows) for client, rows in enumerate(parts)]
    return Bench(flat, SharedTrainer(TrainerSettings(accelerator="cpu")), 0), jobs


class ByHand:
    """One module and one Trainer for all clients; a second `fit` of a Trainer does nothing unless its loops are rewound."""

    def __init__(self, bench: Bench, jobs: list[Job]):
        self.jobs, self.bench = jobs, bench
        network: Any = bench.flat.like(_copied(bench.flat.network)).network
        self.module: LightningModule = network.module
        self.trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def round(self, start_D: torch.Tensor) -> torch.Tensor:
        flat = self.bench.flat
        start = {name.removeprefix("module."): part for name, part in flat.split(start_D).items()}
        rows = []
        for job in self.jobs:
            self.module.load_state_dict(start, strict=False)
            loop = self.trainer.fit_loop
            loop.epoch_progress.reset()
            loop.epoch_loop.batch_progress.reset()
            loop.epoch_loop.automatic_optimization.optim_progress.reset()
            steps = self.bench.plan(job, CLIENT, 0)
            x, y = job.samples.x, job.samples.y
            self.trainer.fit(self.module, train_dataloaders=_Loader([(x[step], y[step]) for step in steps]))
            state = self.module.state_dict()
            end_D = torch.cat([state[name].flatten() for name in start])
            rows.append(end_D - start_D)
        return torch.stack(rows)


class _Loader:
    """Ready batches; a plain list would be taken for a collection of loaders."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _copied(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--budget", type=float, default=25.0, help="seconds a contender may use up before it drops out")
    parser.add_argument("--threads", type=int, default=1, help="more than one makes processor time misleading")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("modules.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    rows: list[dict[str, Any]] = []
    for name in WAYS:
        bench, jobs = setting(name, args.clients, args.samples)
        start_D, hand = bench.flat.vector(), ByHand(bench, jobs)
        local = LocalRound(start_D, jobs, CLIENT, 0)
        contenders: dict[str, Callable[[], Any]] = {
            "by hand": lambda hand=hand, start_D=start_D: hand.round(start_D),
            "module loop": lambda bench=bench, local=local: Sequential().train(bench, local),
        }
        apart = float((hand.round(start_D) - Sequential().train(bench, local)).abs().max())
        best = best_seconds(contenders, args.repeat, "cpu", args.budget, time.process_time)
        rows.append({"module": name, "clients": args.clients, "samples": args.samples, "apart": apart} | best)
        print(rows[-1], file=sys.stderr, flush=True)
    figures: dict[str, Any] = machine("cpu", args.threads) | {"seconds": rows}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{figures['device']}, torch {figures['torch']}, {args.samples} samples a client, best of {args.repeat}\n")
    print("| module | clients | by hand, CPU s | module loop, CPU s | ratio |\n|---|---|---|---|---|")
    for row in rows:
        ratio = row["module loop"] / row["by hand"]
        print(f"| {row['module']} | {row['clients']} | {row['by hand']:.3f} | {row['module loop']:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
