"""Whole rounds: what tracking costs, whether late rounds cost more than early ones, and what a resume costs.

    python benchmarks/bench_rounds.py [--clients 150] [--rounds 60]

Two federations of the same experiment take turns round by round; one of them writes its metrics to MLflow (SQLite) in the
background and a checkpoint to disk after every round, as `fl-lightning run` does.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import machine

from fl_lightning import tracking
from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.runs import Checkpoint


def main() -> None:
    """One line of figures, and rounds.json beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("rounds.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment = load(
        {
            "data": "mnist",
            "rounds": args.rounds,
            "partition": {"name": "iid", "clients": args.clients, "samples_per_client": 60_000 // args.clients},
            "aggregator": "krum",
            "attack": {"name": "label_flip"},
            "participation": {"name": "full", "malicious": args.clients // 5},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        plain, tracked = Federation(experiment), Federation(experiment)
        store = tracking.client()
        run = tracking.create_run(store, experiment, "bench", "run")
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", experiment.tracking.checkpoint_every)
        tracker = tracking.Tracker(experiment, run, Path(folder))
        tracked.observers = [tracker, checkpoint]
        taken: dict[str, list[float]] = {"plain": [], "tracked": []}
        for observer in tracked.observers:
            observer.start(tracked)
        for _ in range(args.rounds):
            for name, federation in (("plain", plain), ("tracked", tracked)):
                begin = time.perf_counter()
                report = federation.round()
                for observer in federation.observers:
                    observer.round(federation, report)
                taken[name].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        resumed = Federation(experiment)
        checkpoint.restore(resumed)
        resume = time.perf_counter() - begin
        tracker.finish(tracked)
    fifth = args.rounds // 5
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    figures = {
        "clients": args.clients,
        "round": median["plain"],
        "tracking_overhead": sum(taken["tracked"]) / sum(taken["plain"]) - 1,
        "tracking_overhead_median": median["tracked"] / median["plain"] - 1,
        "late_to_early": statistics.median(taken["plain"][-fifth:]) / statistics.median(taken["plain"][:fifth]),
        "resume_seconds": resume,
    }
    args.out.write_text(json.dumps(machine("cpu", args.threads) | figures, indent=1) + "\n")
    print(json.dumps(figures), file=sys.stderr)
    print(
        f"round of {args.clients} clients {figures['round']:.2f} s; tracking and checkpoint "
        f"{figures['tracking_overhead_median']:+.1%} (median), {figures['tracking_overhead']:+.1%} (sum); "
        f"late rounds {figures['late_to_early']:.2f} x early ones; resume {resume:.1f} s"
    )


if __name__ == "__main__":
    main()
