"""The command `fl-lightning`. Heavy imports wait until a command needs them."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.cli._arguments import Parser, jobs, port

# Threads that wait must not spin for long on a core that others need: beside one busy process a round is three times faster so.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

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
    top = Parser(
        "fl-lightning", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument(
            "--debug", action="store_true", help="tell an error with its traceback; so does FL_LIGHTNING_DEBUG=1"
        )
        sub.set_defaults(action=action)
        return sub

    def add_experiment(sub: argparse.ArgumentParser, optional: bool) -> None:
        what = "a name from `fl-lightning list experiment`, or a YAML file"
        sub.add_argument("experiment", metavar="EXPERIMENT", nargs="?" if optional else None, help=what)
        sub.add_argument(
            "overrides", metavar="path=value", nargs="*", default=[], help="changes, such as attack.boost=5"
        )
        sub.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")

    run = add("run", _run, "run one experiment, tracked in MLflow")
    add_experiment(run, optional=True)
    run.add_argument("--resume", metavar="RUN_ID", help="continue a run that was killed")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    sweep = add("sweep", _sweep, "search the strongest attack, or the best defense, with Optuna")
    add_experiment(sweep, optional=False)
    sweep.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    matrix = add("matrix", _matrix, "cross attacks with servers over several seeds")
    matrix.add_argument("matrix", metavar="MATRIX", help="a name from configs/matrix/, or a YAML file")
    matrix.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")
    matrix.add_argument("--out", metavar="DIR", help="write csv, tex, pdf and bib of the table there")
    matrix.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    papers = add("reproduce", _reproduce, "run the papers' tables and figures again and judge their claims")
    papers.add_argument(
        "tables",
        metavar="PAPER[:TABLE]",
        nargs="*",
        default=[],
        help="such as cmp or cmp:table-4, or a YAML file; `all`; none: list them",
    )
    papers.add_argument("--size", choices=["quick", "full"], default="quick", help="minutes, or the paper's size")
    papers.add_argument("--jobs", type=jobs, default=2, help="worker processes; ray: on a Ray cluster")
    papers.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")
    papers.add_argument(
        "--write", metavar="FILE", help="put the verdicts between `<!-- verdicts -->` markers of a file"
    )
    papers.add_argument("--json", action="store_true", help="print the verdicts as one JSON object, last on stdout")
    cite = add("cite", _cite, "print BibTeX of exactly what an experiment or a run uses")
    cite.add_argument("what", metavar="EXPERIMENT|RUN_ID", help="a name, a YAML file, or a run, search or matrix")
    cite.add_argument("overrides", metavar="path=value", nargs="*", help="changes of an experiment")
    skeleton = add("new", _new, "write the package of a method of your own, with its tests")
    skeleton.add_argument("kind", choices=["aggregator", "attack", "defense", "experiment"])
    skeleton.add_argument("name", metavar="NAME", help="as configurations will write it, such as shortest_mean")
    foreign = add("import", _import, "print a configuration of ByzFL, FLPoison or BackFed as ours")
    foreign.add_argument(
        "file", metavar="FILE", help="JSON of ByzFL, YAML of FLPoison, or YAML of BackFed in its folder"
    )
    foreign.add_argument(
        "--all", action="store_true", help="FLPoison: every listed attack and defense, not the chosen ones"
    )
    foreign.add_argument("--out", metavar="FILE", help="write it there")
    listing = add("list", _list, "list what a slot can hold")
    listing.add_argument("slot", nargs="?", help="experiment, attack, aggregator, ...; none: all")
    listing.add_argument(
        "--plugins", action="store_true", help="what installed packages add, and what is wrong with it"
    )
    show = add("show", _show, "print the resolved configuration of an experiment as YAML")
    add_experiment(show, optional=False)
    data = add("data", _data, "get data sets, or list what is there")
    data.add_argument("verb", choices=["get", "list"])
    data.add_argument("names", metavar="NAME", nargs="*", default=[], help="data sets to get")
    models = add("models", _models, "registered poisoned models: list, show, compare, export, analyze")
    models.add_argument("verb", choices=["list", "show", "compare", "export", "analyze"])
    models.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        default=[],
        help="NAME, NAME@ALIAS or NAME/VERSION; for export then a folder",
    )
    models.add_argument("--attack", help="list only models of this attack")
    models.add_argument("--aggregator", help="list only models against this aggregator")
    models.add_argument("--against", metavar="NAME", help="analyze: the clean model; its attack-free twin if not given")
    models.add_argument(
        "--trust", action="store_true", help="the model's configuration is your own: import and read what it names"
    )
    models.add_argument("--out", metavar="FILE", help="analyze: the HTML file to write")
    packing = add("pack", _pack, "write one run, search or matrix, with all that belongs to it, to a file")
    packing.add_argument("what", metavar="RUN|STUDY", help="id of a run, or name of a study")
    packing.add_argument("file", metavar="FILE.zip", help="the file to write; it must not exist")
    unpacking = add("unpack", _unpack, "take what `pack` wrote into this runs folder; nothing in it is executed")
    unpacking.add_argument("file", metavar="FILE.zip", help="what `pack` wrote")
    ui = add("ui", _ui, "open the MLflow UI on the runs")
    ui.add_argument("--port", type=port, default=5000)
    ui.add_argument("--host", default="127.0.0.1")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for bad input, 1 for a run that failed, 130 for an interrupt.

    Every error is one line on stderr; with `--debug` the traceback stands before it.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal without UTF-8 cannot show is no reason to lose a result
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        return int(options.action(options))
    except KeyboardInterrupt:
        print("\ninterrupted; `fl-lightning run --resume RUN_ID` or the same sweep goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # whatever it is, one line says it
        return _tell(error, debug=options.debug or os.environ.get("FL_LIGHTNING_DEBUG", "") not in ("", "0"))


def _tell(error: Exception, debug: bool) -> int:
    """Print an error as one line; returns the exit code."""
    from fl_lightning.errors import ConfigError, masked, one_line

    if debug:
        import traceback

        print(masked("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if isinstance(error, ConfigError | ConnectionError):
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    notes = [*getattr(error, "__notes__", ())] or ([] if debug else ["--debug shows where"])
    line = "; ".join([f"{type(error).__name__}: {error}", *notes])
    print(f"error: {one_line(line)}", file=sys.stderr)
    return 1


def _print_json(value: Any) -> None:
    from fl_lightning.inputs import strict_json

    print(strict_json(value))


def _load(options: argparse.Namespace) -> "Experiment":
    from fl_lightning.config import load

    experiment = load(options.experiment, options.overrides)
    return experiment.faster() if options.fast else experiment


def _watch(experiment: "Experiment") -> list[Any]:
    from fl_lightning.cli._progress import RoundProgress
    from fl_lightning.tracking import run_name

    return [RoundProgress(run_name(experiment))]


def _run(options: argparse.Namespace) -> int:
    from fl_lightning.errors import ConfigError

    if bool(options.resume) == bool(options.experiment):
        raise ConfigError("give an EXPERIMENT or --resume RUN_ID, one of the two")
    if options.resume and (options.overrides or options.fast):
        raise ConfigError("--resume takes everything from the run; it can be given no changes")
    from fl_lightning import runs
    from fl_lightning.cli._tables import print_outcome

    if options.resume:
        outcome = runs.resume(options.resume, _watch)
    else:
        experiment = _load(options)
        outcome = runs.run(experiment, _label(options.experiment), _watch)
    print_outcome(outcome)
    if options.json:
        _print_json(outcome.to_dict())
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from fl_lightning.cli._progress import SearchProgress
    from fl_lightning.cli._tables import print_sweep
    from fl_lightning.search import sweep

    experiment = _load(options)
    progress = SearchProgress(experiment.sweep.metrics[0])
    outcome = sweep(experiment, _label(options.experiment), _watch, progress)
    print_sweep(outcome, experiment)
    if options.json:
        from dataclasses import asdict

        _print_json(asdict(outcome))
    return 0


def _matrix(options: argparse.Namespace) -> int:
    from rich.markdown import Markdown
    from rich.table import Table

    from fl_lightning._matrix import load_matrix, run_matrix
    from fl_lightning.cli._progress import CampaignProgress
    from fl_lightning.cli._tables import wide_console
    from fl_lightning.tracking import look_closer

    matrix = load_matrix(options.matrix)
    outcome = run_matrix(matrix, _label(options.matrix), options.fast, CampaignProgress(_label(options.matrix)))
    console = wide_console()
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
    console.print(f"bold: the strongest attack on each server; {outcome.verdict()}")
    console.print(Markdown(outcome.minimax()) if console.is_terminal else outcome.minimax(), soft_wrap=True)
    if options.out:
        for path in outcome.write(Path(options.out), _label(options.matrix)):
            console.print(f"written: {path}", soft_wrap=True, highlight=False)
    about = f"run {outcome.campaign.run_id}\n{look_closer(outcome.campaign.run_id)}"
    console.print(about, soft_wrap=True, highlight=False)
    if options.json:
        rows = {"run_id": outcome.campaign.run_id, "safest": outcome.safest(), "cells": outcome.rows()}
        _print_json(rows)
    return 1 if outcome.campaign.failures else 0


def _reproduce(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning.cli._progress import CampaignProgress
    from fl_lightning.cli._tables import wide_console
    from fl_lightning.papers import check_markers, find_tables, plain, reproduce, write_verdicts
    from fl_lightning.tracking import look_closer

    if options.write:
        check_markers(options.write)  # before hours are spent
    console = wide_console()
    tables = find_tables([] if options.tables == ["all"] else options.tables)
    listing = Table("table", "claims", "quick, min", "full, min", "what it shows", box=None)
    for name, one in tables.items():
        minutes = [f"{one.sizes[size].minutes:g}" if size in one.sizes else "-" for size in ("quick", "full")]
        listing.add_row(name, str(len(list(one.claims()))), *minutes, one.title)
    console.print(listing)
    if not options.tables:
        console.print("run one: fl-lightning reproduce PAPER[:TABLE]; all quick ones: fl-lightning reproduce all")
        return 0
    expected = sum(one.sizes[options.size].minutes for one in tables.values() if options.size in one.sizes)
    console.print(f"expected: at most {expected:g} minutes on two cores; finished runs are not run again\n")
    tables = {name: one for name, one in tables.items() if options.size in one.sizes}
    progress = CampaignProgress(f"reproduce {' '.join(options.tables)}")
    outcome = reproduce(tables, options.size, options.jobs, options.fast, progress)
    table = Table("claim", "", "printed", "measured", "verdict", box=None)
    for row in outcome.rows():
        table.add_row(*row)
    console.print(table)
    for failure in outcome.failures:
        console.print(f"failed: {failure}", soft_wrap=True, highlight=False)
    console.print(", ".join(f"{count} {name}" for name, count in outcome.counts().items() if count))
    if options.write:
        write_verdicts(outcome, options.write)
    console.print(f"run {outcome.run_id}\n{look_closer(outcome.run_id)}", soft_wrap=True, highlight=False)
    if options.json:
        _print_json({"run_id": outcome.run_id, "counts": outcome.counts(), "claims": plain(outcome)})
    return 1 if outcome.failures else 0


def _cite(options: argparse.Namespace) -> int:
    from fl_lightning.config import load
    from fl_lightning.errors import ConfigError
    from fl_lightning.references import bibtex
    from fl_lightning.registry import parts
    from fl_lightning.runs import open

    try:
        text = bibtex(parts(load(options.what, options.overrides)))
    except ConfigError as error:
        try:
            text = open(options.what).bibtex()
        except ConfigError:
            raise error from None
    print(text, end="")
    return 0


def _import(options: argparse.Namespace) -> int:
    from fl_lightning.cli._import import import_foreign

    return import_foreign(options)


def _new(options: argparse.Namespace) -> int:
    from fl_lightning.cli._new import new

    for path in new(options.kind, options.name, Path()):
        print(path)
    where = f"cd {options.name}"
    if options.kind == "experiment":
        print(f"now: {where} && fl-lightning run {options.name}")
    else:
        print(f"now: {where} && pip install -e . && pytest; then {options.kind}={options.name} works everywhere")
    return 0


def _list(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning.cli._tables import print_plugins, wide_console
    from fl_lightning.config import experiment_names
    from fl_lightning.registry import SLOTS, name_of, registry, summary

    console = wide_console()
    if options.plugins:
        print_plugins([options.slot] if options.slot else list(SLOTS))
        return 0
    slots = [options.slot] if options.slot else ["experiment", *SLOTS]
    for slot in slots:
        table = Table("name", "what it is", title=slot, title_justify="left", box=None, pad_edge=False)
        if slot == "experiment":
            rows = [(name, _first_comment(name)) for name in experiment_names()]
        else:
            rows = [(name_of(cls), summary(cls)) for cls in registry(slot)]
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    return 0


def _first_comment(name: str) -> str:
    from fl_lightning.paths import find_config

    path = find_config("experiment", name)
    first = next(iter(path.read_text().splitlines()), "") if path else ""
    return first.lstrip("# ") if first.startswith("#") else ""


def _show(options: argparse.Namespace) -> int:
    from fl_lightning.config import dump

    print(dump(_load(options)), end="")
    return 0


def _data(options: argparse.Namespace) -> int:
    from rich.table import Table

    from fl_lightning import data
    from fl_lightning.cli._tables import wide_console
    from fl_lightning.errors import ConfigError

    console = wide_console()
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
    from fl_lightning.cli._models import models

    return models(options)


def _pack(options: argparse.Namespace) -> int:
    from fl_lightning.search import pack

    print(f"written: {pack(options.what, Path(options.file))}")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    from fl_lightning.search import unpack

    got = unpack(Path(options.file))
    study = f", study {got.study} with {got.trials} trials" if got.study else ""
    print(
        f"unpacked: run {got.run_id}, {got.runs} runs in all, {got.models} models{study}; look closer: fl-lightning ui"
    )
    for there, here in got.renamed.items():
        print(f"{there} of the pack is {here} here: that number was taken")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from fl_lightning.cli._browser import ui

    return ui(options.host, options.port)


def _label(experiment: str) -> str:
    return os.path.splitext(os.path.basename(experiment))[0]


if __name__ == "__main__":
    sys.exit(main())
