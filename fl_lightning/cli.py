"""The command `fl-lightning`. Heavy imports wait until a command needs them."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

# Threads that wait must not spin for long on a core that others need: beside one busy process a round is three times faster so.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from rich.console import Console

    from fl_lightning.config import Experiment
    from fl_lightning.runs import Outcome
    from fl_lightning.sweep import SweepOutcome

DESCRIPTION = "Measure how badly federated learning can be poisoned, and what stops it."
EXAMPLES = """examples:
  fl-lightning run mnist                              one tracked experiment
  fl-lightning run mnist attack.boost=5 rounds=10     the same with changes
  fl-lightning run --resume RUN_ID                    go on after a kill
  fl-lightning sweep mnist_backdoor sweep.trials=20   search the strongest attack
  fl-lightning ui                                     look at all of it in the browser
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        "fl-lightning", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(action=action)
        return sub

    def add_experiment(sub: argparse.ArgumentParser, optional: bool) -> None:
        what = "a name from `fl-lightning list experiment`, or a YAML file"
        sub.add_argument("experiment", metavar="EXPERIMENT", nargs="?" if optional else None, help=what)
        sub.add_argument("overrides", metavar="path=value", nargs="*", help="changes, such as attack.boost=5")
        sub.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")

    run = add("run", _run, "run one experiment, tracked in MLflow")
    add_experiment(run, optional=True)
    run.add_argument("--resume", metavar="RUN_ID", help="continue a run that was killed")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    sweep = add("sweep", _sweep, "search the strongest attack with Optuna")
    add_experiment(sweep, optional=False)
    sweep.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    matrix = add("matrix", _matrix, "cross attacks with servers over several seeds")
    matrix.add_argument("matrix", metavar="MATRIX", help="a name from configs/matrix/, or a YAML file")
    matrix.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")
    matrix.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    listing = add("list", _list, "list what a slot can hold")
    listing.add_argument("slot", nargs="?", help="experiment, attack, aggregator, ...; none: all")
    show = add("show", _show, "print the resolved configuration of an experiment as YAML")
    add_experiment(show, optional=False)
    data = add("data", _data, "get data sets, or list what is there")
    data.add_argument("verb", choices=["get", "list"])
    data.add_argument("names", metavar="NAME", nargs="*", help="data sets to get")
    models = add("models", _models, "registered poisoned models: list, show, compare, export, analyze")
    models.add_argument("verb", choices=["list", "show", "compare", "export", "analyze"])
    models.add_argument(
        "names", metavar="NAME", nargs="*", help="NAME, NAME@ALIAS or NAME/VERSION; for export then a folder"
    )
    models.add_argument("--attack", help="list only models of this attack")
    models.add_argument("--aggregator", help="list only models against this aggregator")
    models.add_argument("--against", metavar="NAME", help="analyze: the clean model; its attack-free twin if not given")
    models.add_argument("--out", metavar="FILE", help="analyze: the HTML file to write")
    ui = add("ui", _ui, "open the MLflow UI on the runs")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", default="127.0.0.1")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for bad input, 1 for a run that failed, 130 for an interrupt."""
    options = parser().parse_args(arguments)
    from fl_lightning.registry import ConfigError

    try:
        return int(options.action(options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; `fl-lightning run --resume RUN_ID` or the same sweep goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _load(options: argparse.Namespace) -> "Experiment":
    from fl_lightning.config import load

    experiment = load(options.experiment, options.overrides)
    return experiment.faster() if options.fast else experiment


def _watch(experiment: "Experiment") -> list[Any]:
    from fl_lightning.progress import RoundProgress
    from fl_lightning.tracking import run_name

    return [RoundProgress(run_name(experiment))]


def _run(options: argparse.Namespace) -> int:
    from fl_lightning.registry import ConfigError

    if bool(options.resume) == bool(options.experiment):
        raise ConfigError("give an EXPERIMENT or --resume RUN_ID, one of the two")
    if options.resume and (options.overrides or options.fast):
        raise ConfigError("--resume takes everything from the run; it can be given no changes")
    from fl_lightning import runs

    if options.resume:
        outcome = runs.resume(options.resume, _watch)
    else:
        experiment = _load(options)
        outcome = runs.run(experiment, _label(options.experiment), _watch)
    _print_outcome(outcome)
    if options.json:
        print(json.dumps(outcome.to_dict()))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from fl_lightning.progress import SearchProgress
    from fl_lightning.sweep import sweep

    experiment = _load(options)
    progress = SearchProgress(experiment.sweep.metrics[0])
    outcome = sweep(experiment, _label(options.experiment), _watch, progress)
    _print_sweep(outcome, experiment)
    if options.json:
        from dataclasses import asdict

        print(json.dumps(asdict(outcome)))
    return 0


def _matrix(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning.matrix import load_matrix, run_matrix
    from fl_lightning.progress import CampaignProgress

    matrix = load_matrix(options.matrix)
    outcome = run_matrix(matrix, _label(options.matrix), options.fast, CampaignProgress(_label(options.matrix)))
    console = _console()
    attacks = list(matrix.attacks)
    table = Table(matrix.metric, *attacks, "accuracy without attack", box=None)
    for server in matrix.servers:
        cells = [str(outcome.cell(attack, server) or "-") for attack in attacks]
        worst = outcome.worst(server)
        shown = [
            f"[bold]{cell}[/bold]" if attack == worst else cell for attack, cell in zip(attacks, cells, strict=True)
        ]
        table.add_row(server, *shown, str(outcome.cell("no attack", server, "global/accuracy") or "-"))
    console.print(table)
    for failure in outcome.campaign.failures.values():
        console.print(f"failed: {failure}", soft_wrap=True, highlight=False)
    console.print(f"bold: the strongest attack on each server; the best worst case: {outcome.safest()}")
    console.print(f"run {outcome.campaign.run_id}; look closer: fl-lightning ui", soft_wrap=True, highlight=False)
    if options.json:
        rows = {"run_id": outcome.campaign.run_id, "safest": outcome.safest(), "cells": outcome.rows()}
        print(json.dumps(rows))
    return 1 if outcome.campaign.failures else 0


def _list(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning.callbacks import CALLBACKS
    from fl_lightning.config import experiment_names
    from fl_lightning.registry import SLOTS, registry

    console = _console()
    slots = [options.slot] if options.slot else ["experiment", *SLOTS, "callback"]
    for slot in slots:
        table = Table("name", "what it is", title=slot, title_justify="left", box=None, pad_edge=False)
        if slot == "experiment":
            rows = [(name, _first_comment(name)) for name in experiment_names()]
        elif slot == "callback":
            rows = [(name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in sorted(CALLBACKS.items())]
        else:
            rows = [(cls.name, cls.summary()) for cls in registry(slot)]
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    return 0


def _first_comment(name: str) -> str:
    from fl_lightning.paths import CONFIGS

    first = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _show(options: argparse.Namespace) -> int:
    from fl_lightning.config import dump

    print(dump(_load(options)), end="")
    return 0


def _data(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning import data
    from fl_lightning.registry import ConfigError

    console = _console()
    if options.verb == "get":
        if not options.names:
            raise ConfigError("name the data sets to get; `fl-lightning data list` shows them")
        for name in options.names:
            data.get(name, lambda line: console.print(line, soft_wrap=True, highlight=False))
        return 0
    table = Table("data set", "train", "test", "input", "classes", "where", box=None)
    for one in data.status():
        kind = str(one.classes) if one.task == "classification" else one.task
        shape = "x".join(map(str, one.shape))
        where = one.where or f"not here; fl-lightning data get {one.name}"
        table.add_row(one.name, f"{one.train:,}", f"{one.test:,}", shape, kind, where)
    console.print(table)
    return 0


def _models(options: argparse.Namespace) -> int:
    from fl_lightning.registry import ConfigError

    verbs = {
        "list": (0, _models_list),
        "show": (1, _models_show),
        "compare": (2, _models_compare),
        "export": (2, _models_export),
        "analyze": (1, _models_analyze),
    }
    count, verb = verbs[options.verb]
    if len(options.names) != count:
        analyze = " NAME [--against CLEAN] [--out FILE]"
        usage = {"list": "", "show": " NAME", "compare": " A B", "export": " NAME DIR", "analyze": analyze}[
            options.verb
        ]
        raise ConfigError(f"usage: fl-lightning models {options.verb}{usage}")
    return verb(options)


def _models_list(options: argparse.Namespace) -> int:
    from rich.table import Column, Table

    from fl_lightning.model_registry import registered_models

    versions = registered_models(options.attack, options.aggregator)
    if not versions:
        print("no registered models yet; `fl-lightning sweep mnist_backdoor` makes one")
        return 0
    table = Table(
        Column("model", overflow="fold"),
        "version",
        "alias",
        "attack",
        "success",
        "accuracy",
        "seed",
        Column("run", overflow="fold"),
        box=None,
    )
    for version in versions:
        tags = version.tags
        figures = (tags.get(name, "") for name in ("attack", "attack/success", "global/accuracy", "seed"))
        table.add_row(version.name, str(version.version), ", ".join(version.aliases), *figures, version.run_id)
    _console().print(table)
    print(
        "\nload one: mlflow.pytorch.load_model('models:/NAME@strongest'); hand one on: fl-lightning models export NAME DIR"
    )
    return 0


def _models_show(options: argparse.Namespace) -> int:
    from rich.markdown import Markdown

    from fl_lightning.model_registry import card, find

    console = _console()
    text = card(find(options.names[0]))
    console.print(Markdown(text) if console.is_terminal else text, markup=False, soft_wrap=not console.is_terminal)
    return 0


def _models_compare(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning.model_registry import compare, find

    one, other = map(find, options.names)
    table = Table("", one.title, other.title, "difference", box=None)
    for name in sorted(set(one.figures) | set(other.figures)):
        values = [model.figures.get(name) for model in (one, other)]
        difference = "" if None in values else f"{values[1] - values[0]:+.4g}"  # type: ignore[operator]
        table.add_row(name, *("" if value is None else f"{value:.4g}" for value in values), difference)
    console = _console()
    console.print(table)
    layers = Table("layer", "L2 distance", "relative", "cosine", box=None)
    for name, distance, relative, cosine in compare(one, other):
        layers.add_row(name, f"{distance:.4g}", f"{relative:.3f}", f"{cosine:.4f}")
    console.print(layers)
    return 0


def _models_export(options: argparse.Namespace) -> int:
    from pathlib import Path

    from fl_lightning.model_registry import export, find

    for path in export(find(options.names[0]), Path(options.names[1])):
        print(path)
    return 0


def _models_analyze(options: argparse.Namespace) -> int:
    from pathlib import Path

    from fl_lightning.analysis import analyze

    out = Path(options.out) if options.out else None
    print(analyze(options.names[0], options.against, out, lambda title: print(f"done: {title}", file=sys.stderr)))
    return 0


def _ui(options: argparse.Namespace) -> int:
    import socket
    import subprocess

    from fl_lightning.registry import ConfigError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            reason = f"cannot listen on {options.host}:{options.port} ({error.strerror}); try --port {options.port + 1}"
            raise ConfigError(reason) from None
    from fl_lightning import tracking
    from fl_lightning.paths import runs_folder

    tracking.client()
    uri = tracking.tracking_uri()
    print(f"MLflow UI on http://{options.host}:{options.port}  (Ctrl-C ends it)", flush=True)
    place = ["--backend-store-uri", uri, "--host", options.host, "--port", str(options.port)]
    if uri.startswith("sqlite:"):
        place += ["--default-artifact-root", (runs_folder() / "artifacts").as_uri()]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nothing here is scored online
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "ui", "--workers", "1", *place], env=quiet, check=False
    ).returncode


def _console() -> "Console":
    """Of the terminal's width; wide elsewhere, so that names can be copied from a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def _label(experiment: str) -> str:
    return os.path.splitext(os.path.basename(experiment))[0]


def _print_outcome(outcome: "Outcome") -> None:
    from rich.table import Table

    from fl_lightning.metrics import interval

    console = _console()
    table = Table(
        "metric", "value", box=None, title=f"{outcome.experiment}: {outcome.rounds} rounds", title_justify="left"
    )
    for name, value in sorted(outcome.metrics.items()):
        values = [one.metrics[name] for one in outcome.seeds]
        shown = str(interval(values)) if values else f"{value:.4g}"
        if not name.startswith("time/") or name == "time/round":
            table.add_row(name, shown)
    console.print(table)
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", soft_wrap=True)
    if outcome.registered_model:
        console.print(f"registered: {outcome.registered_model}", soft_wrap=True)
    console.print(f"run {outcome.run_id}; look closer: fl-lightning ui", soft_wrap=True, highlight=False)


def _print_sweep(outcome: "SweepOutcome", experiment: "Experiment") -> None:
    from rich.table import Table

    console = _console()
    metrics = experiment.sweep.metrics
    title = "Pareto front" if len(metrics) > 1 else "best trials"
    table = Table("trial", *metrics, "state", "settings", box=None, title=title, title_justify="left")
    rows = [row for row in outcome.trials if row["front"]] or outcome.trials[:5]
    for row in rows:
        settings = "  ".join(f"{path}={_short(value)}" for path, value in row["changes"].items())
        state = row["state"] if row["feasible"] else "breaks a constraint"
        figures = [_short(value) for value in row["values"] or [""] * len(metrics)]
        table.add_row(str(row["number"]), *figures, state, settings)
    console.print(table)
    if outcome.searched is None:
        console.print("no trial held the constraints; the figures are those of the one that missed them least")
    seeds = len(experiment.sweep.confirm_seeds)
    result = Table("", *metrics, box=None, title="strongest found", title_justify="left")
    if outcome.searched:
        result.add_row("in the search (optimistic)", *(f"{outcome.searched[metric]:.3f}" for metric in metrics))
    result.add_row(f"on {seeds} unseen seeds", *(str(outcome.confirmed[metric]) for metric in metrics))
    result.add_row("configured attack, same seeds", *(str(outcome.default[metric]) for metric in metrics))
    console.print(result)
    console.print(f"{outcome.verdict} (paired difference in {metrics[0]}: {outcome.gain})", soft_wrap=True)
    console.print(f"rounds saved by pruning and shared warm-up: {outcome.rounds_saved:.0%}")
    if outcome.registered_model:
        name = outcome.registered_model.rpartition("/")[0]
        console.print(f"registered: {outcome.registered_model}; load it: models:/{name}@strongest", soft_wrap=True)
    console.print(f"study {outcome.study}, run {outcome.run_id}; look closer: make ui", soft_wrap=True, highlight=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
