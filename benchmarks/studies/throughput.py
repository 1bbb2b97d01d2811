"""Trials a minute of one study by one worker and by two, each with one thread; wants two idle cores.

Counted from the start of the first trial to the end of the last one, without what the processes need to start.

    python benchmarks/studies/throughput.py [--trials 16] [--rounds 20]
"""

import argparse
import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"

import optuna

from fl_lightning.config import load
from fl_lightning.paths import runs_folder
from fl_lightning.search import strongest


def throughput(jobs: int, trials: int, rounds: int) -> float:
    """Trials a minute."""
    search = {"trials": trials, "jobs": jobs, "sampler": "random", "pruner": "none"}
    small = ["partition.clients=20", "participation.malicious=4", "aggregator.n_byzantine=4"]
    experiment = load("mnist", [f"rounds={rounds}", "attack=ipm", *small, f"seed={jobs}", f"sweep={search}"])
    strongest(experiment, f"{jobs} workers")
    url = f"sqlite:///{runs_folder() / 'optuna.db'}"
    names = optuna.get_all_study_names(url)
    found = [optuna.load_study(study_name=name, storage=url) for name in names]
    newest = max(found, key=lambda study: study.trials[0].datetime_start)
    begin = min(trial.datetime_start for trial in newest.trials)
    end = max(trial.datetime_complete for trial in newest.trials)
    return 60 * len(newest.trials) / (end - begin).total_seconds()


def main() -> None:
    """One worker, two workers, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_LIGHTNING_RUNS"] = folder
        one, two = (throughput(jobs, options.trials, options.rounds) for jobs in (1, 2))
    print(f"one worker {one:.1f} trials a minute, two workers {two:.1f}: {two / one:.2f} times as many")


if __name__ == "__main__":
    main()
