"""What pruning saves and what it costs: the same study with and without it.

Every study seed draws its own clients, initial model and trials. Rounds are those of the search; winners are compared by their
figure on five seeds that no search saw. One line of JSON for each setting, study seed and pruner.

    python benchmarks/studies/pruning.py results.jsonl [--settings digits krum] [--trials 40] [--seeds 3] [--pruners none halving]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import optuna

from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.metrics import interval
from fl_lightning.search._first_trials import configured, rank
from fl_lightning.search._pruning import pruner
from fl_lightning.search._space import changes, search_space
from fl_lightning.search._study import sampler
from fl_lightning.search._trials import Watcher, ask, score, violations

CONFIRM = [1001, 1002, 1003, 1004, 1005]
MNIST: dict[str, Any] = {
    "data": {"name": "mnist", "test_samples": 1000},
    "partition": {"name": "degree", "clients": 10, "p": 0.5, "samples_per_client": 300},
    "client": {"steps": 4, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}},
    "participation": {"name": "full", "malicious": 2},
}
SETTINGS: dict[str, dict[str, Any]] = {
    # an untargeted attack: its success is high while the model knows nothing, and falls
    "digits": {
        "data": "digits",
        "rounds": 18,
        "partition": {"name": "iid", "clients": 10},
        "model": {"name": "mlp", "hidden": [32]},
        "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        "participation": {"name": "full", "malicious": 2},
        "attack": "alie",
        "aggregator": {"name": "trimmed_mean", "n_byzantine": 2},
        "sweep": {"space": {"attack": {"choice": ["alie", "ipm", "sign_flip"]}}},
    },
    # a backdoor under a constraint, the experiment of `make sweep` with fewer clients
    "backdoor": MNIST
    | {
        "rounds": 18,
        "attack": {"name": "model_replacement", "boost": 1.0, "objective": {"name": "trigger", "label": 0}},
        "sweep": {"constraints": {"global/accuracy": ">= 0.8"}},
    },
    # which attack is strongest against Krum, and with what settings
    "krum": MNIST
    | {
        "rounds": 18,
        "attack": "cmp",
        "aggregator": {"name": "krum", "n_byzantine": 2, "squared": False},
        "sweep": {"space": {"attack": {"choice": ["cmp", "fang_krum", "alie", "ipm"]}}},
    },
}


def study(setting: str, seed: int, pruning: str, trials: int) -> dict[str, Any]:
    """One study, without tracking: what `fl-lightning sweep` draws, reports and gives up."""
    base = SETTINGS[setting]
    experiment = load(base | {"seed": seed, "sweep": base["sweep"] | {"trials": trials, "pruner": pruning}})
    settings, space = experiment.sweep, search_space(experiment)
    metric = settings.metrics[0]
    found = optuna.create_study(
        direction=settings.directions[0],
        sampler=sampler(settings.sampler, seed),
        pruner=pruner(settings, experiment.rounds),
    )
    for first in configured(experiment, space):
        found.enqueue_trial(first)
    rounds = 0

    def trial_of(trial: optuna.Trial) -> float:
        nonlocal rounds
        drawn = changes(space, ask(trial))
        trial.set_user_attr("changes", drawn)
        watcher = Watcher(trial, metric)
        state = Federation(experiment.override(drawn), [watcher]).run()
        rounds += watcher.rounds
        for name, missed in violations(watcher.history, settings.constraints).items():
            trial.set_constraint(name, missed)
        if state.stopped:
            raise optuna.TrialPruned(state.stopped)
        return score(watcher.history, metric)

    begin = time.process_time()
    found.optimize(trial_of, n_trials=trials)
    seconds = time.process_time() - begin
    complete = found.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    winner = min(complete, key=lambda trial: rank(found, trial))
    confirmed = []
    for unseen in CONFIRM:
        watcher = Watcher()
        Federation(experiment.override(winner.user_attrs["changes"] | {"seed": unseen}), [watcher]).run()
        confirmed.append(score(watcher.history, metric))
    return {
        "setting": setting,
        "seed": seed,
        "pruner": pruning,
        "rounds": rounds,
        "complete": len(complete),
        "seconds": round(seconds, 1),
        "searched": winner.value,
        "feasible": all(missed <= 0 for missed in winner.constraints.values()),
        "confirmed": interval(confirmed).mean,
        "half": interval(confirmed).half,
        "winner": winner.user_attrs["changes"],
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Each pruner beside the same study without one."""
    whole = {(row["setting"], row["seed"]): row for row in rows if row["pruner"] == "none"}
    print("setting   seed pruner     rounds  of all  confirmed  without pruning  difference")
    for row in rows:
        if other := whole.get((row["setting"], row["seed"])):
            share, lost = row["rounds"] / other["rounds"], row["confirmed"] - other["confirmed"]
            print(
                f"{row['setting']:9} {row['seed']:4} {row['pruner']:10} {row['rounds']:6} {share:7.0%} "
                f"{row['confirmed']:10.3f} {other['confirmed']:16.3f} {lost:+11.3f}"
            )


def main() -> None:
    """Every study that the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=sorted(SETTINGS))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pruners", nargs="+", default=["none", "halving"])
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.is_file() else []
    known = {(row["setting"], row["seed"], row["pruner"]) for row in map(json.loads, lines)}
    for setting in options.settings:
        for seed in range(options.seeds):
            for pruning in options.pruners:
                if (setting, seed, pruning) in known:
                    continue
                row = study(setting, seed, pruning, options.trials)
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    report([json.loads(line) for line in options.results.read_text().splitlines()])


if __name__ == "__main__":
    main()
