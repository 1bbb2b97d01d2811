"""The command `fl-lightning`. Heavy imports wait until a command needs them."""

import argparse
import codecs
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.cli._parser import parser
from fl_lightning.paths import readable

# Threads that wait must not spin for long on a core that others need: beside one busy process a round is three times faster so.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from collections.abc import Callable

    from fl_lightning.config import Experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for bad input, 1 for a run that failed, 130 for an interrupt.

    Every error is one line on stderr; with `--debug` the traceback stands before it.
    """
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal without UTF-8 cannot show is no reason to lose a result
            stream.reconfigure(errors="plain")
    options = parser().parse_args(arguments)
    try:
        _refuse_unreadable(sys.argv[1:] if arguments is None else arguments)
        module, _, name = options.action.partition(":")
        return int(getattr(import_module(f"fl_lightning.cli.{module}"), name)(options))
    except KeyboardInterrupt:
        print("\ninterrupted; `fl-lightning run --resume RUN_ID` or the same sweep goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # whatever it is, one line says it
        return _tell(error, debug=options.debug or os.environ.get("FL_LIGHTNING_DEBUG", "") not in ("", "0"))


def _refuse_unreadable(words: Sequence[str]) -> None:
    """Names that cannot be written down again would fail in the middle of a run."""
    for word in words:
        if not readable(word):
            from fl_lightning.errors import ConfigError, excerpt

            raise ConfigError(
                f"this locale cannot read {excerpt(word)}: set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or name it otherwise"
            )


PLAIN = {"±": "+/-", "≥": ">=", "≤": "<=", "×": "x", "†": "*", "…": "...", "–": "-", "—": "-", "→": "->"}
"""Signs that mean the same in ASCII; letters are never replaced, since a name would become another."""


def plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a terminal cannot show: signs of the same meaning, else their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def _tell(error: Exception, debug: bool) -> int:
    """Print an error as one line; returns the exit code."""
    from fl_lightning.errors import ConfigError, masked, one_line

    if debug:
        import traceback

        print(masked("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    impossible = _impossible_name(error)
    if impossible or isinstance(error, ConfigError | ConnectionError):
        print(f"error: {one_line(impossible or str(error))}", file=sys.stderr)
        return 2 if impossible or isinstance(error, ConfigError) else 1
    notes = [*getattr(error, "__notes__", ())] or ([] if debug else ["--debug shows where"])
    line = "; ".join([f"{type(error).__name__}: {error}", *notes])
    print(f"error: {one_line(line)}", file=sys.stderr)
    return 1


def _impossible_name(error: Exception) -> str:
    """What is wrong with a name that the operating system takes for none; empty for any other error."""
    from fl_lightning.errors import excerpt

    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"too long for the name of a file: {excerpt(error.filename)}"
    if isinstance(error, ValueError) and str(error).startswith(("embedded null", "embedded NUL")):
        return "a name holds the character NUL, which no file has in its name"
    return ""


def _print_json(value: Any) -> None:
    from fl_lightning.inputs import strict_json

    print(strict_json(value))


def _load(options: argparse.Namespace) -> "Experiment":
    from fl_lightning.config import load

    experiment = load(options.experiment, options.overrides)
    return experiment.faster() if options.fast else experiment


def _watch(options: argparse.Namespace) -> "Callable[[Experiment], list[Any]]":
    from fl_lightning.cli._progress import RoundProgress
    from fl_lightning.tracking import run_name

    return lambda experiment: [] if options.quiet else [RoundProgress(run_name(experiment))]


def run(options: argparse.Namespace) -> int:
    """One experiment, or the rest of a run that was killed."""
    from fl_lightning.errors import ConfigError

    if bool(options.resume) == bool(options.experiment):
        raise ConfigError("give an EXPERIMENT or --resume RUN_ID, one of the two")
    if options.resume and (options.overrides or options.fast or options.dry_run):
        raise ConfigError("--resume takes everything from the run; it can be given no changes")
    experiment = None if options.resume else _load(options)  # bad input is told before MLflow is imported
    if options.dry_run and experiment:
        from fl_lightning.cli._estimate import estimate_run

        return estimate_run(experiment, options.json)
    from fl_lightning import runs
    from fl_lightning.cli._tables import print_outcome

    if experiment is None:
        outcome = runs.resume(options.resume, _watch(options))
    else:
        outcome = runs.run(experiment, _label(options.experiment), _watch(options))
    print_outcome(outcome, options.all)
    if options.json:
        _print_json(outcome.to_dict())
    return 0


def sweep(options: argparse.Namespace) -> int:
    """A search, its confirmation, and what came out."""
    experiment = _load(options)
    if options.dry_run:
        from fl_lightning.cli._estimate import estimate_sweep

        return estimate_sweep(experiment, options.json)
    from fl_lightning.cli._progress import SearchProgress
    from fl_lightning.cli._tables import print_sweep
    from fl_lightning.search import sweep

    own = [_changes(words) for words in options.enqueue]
    label = _label(options.experiment)
    if options.quiet:
        outcome = sweep(experiment, label, enqueue=own)
    else:
        progress = SearchProgress(
            experiment.sweep.metrics[0], experiment.sweep.confirm_seeds, experiment.sweep.runners_up
        )
        outcome = sweep(experiment, label, progress.watch, progress, own)
        progress.close()
    print_sweep(outcome, experiment)
    if options.json:
        from dataclasses import asdict

        _print_json(asdict(outcome))
    return 0


def _changes(words: str) -> dict[str, Any]:
    """`attack.boost=5 attack.epochs=3` as dotted paths and values."""
    import shlex

    from fl_lightning.config import parse_changes
    from fl_lightning.errors import ConfigError, excerpt

    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise ConfigError(f"cannot be taken apart ({error}), got {excerpt(words)}", "--enqueue") from None
    if not parts:
        raise ConfigError("a trial needs path=value, got nothing", "--enqueue")
    return dict(parse_changes(parts))


def matrix(options: argparse.Namespace) -> int:
    """All attacks against all servers: table, worst cases, heat map."""
    from fl_lightning._matrix import load_matrix

    matrix = load_matrix(options.matrix, options.overrides)
    if options.dry_run:
        from fl_lightning.cli._estimate import estimate_matrix

        return estimate_matrix(matrix, options.fast, options.json)
    from rich.markdown import Markdown
    from rich.table import Table

    from fl_lightning._matrix import run_matrix
    from fl_lightning.cli._progress import CampaignProgress
    from fl_lightning.cli._tables import wide_console
    from fl_lightning.tracking import look_closer

    progress = [] if options.quiet else [CampaignProgress(_label(options.matrix))]
    outcome = run_matrix(matrix, _label(options.matrix), options.fast, *progress)
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


def cite(options: argparse.Namespace) -> int:
    """BibTeX of what an experiment or a run uses."""
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


def new(options: argparse.Namespace) -> int:
    """The skeleton of a package with a method of the user's own."""
    from fl_lightning.cli._new import new

    for path in new(options.kind, options.name, Path()):
        print(path)
    where = f"cd {options.name}"
    if options.kind == "experiment":
        print(f"now: {where} && fl-lightning run {options.name}")
    else:
        print(f"now: {where} && pip install -e . && pytest; then {options.kind}={options.name} works everywhere")
    return 0


def show(options: argparse.Namespace) -> int:
    """The resolved configuration."""
    from fl_lightning.config import dump

    print(dump(_load(options)), end="")
    return 0


def models(options: argparse.Namespace) -> int:
    """The registered models."""
    from fl_lightning.cli._models import models

    return models(options)


def ui(options: argparse.Namespace) -> int:
    """MLflow in the browser."""
    from fl_lightning.cli._browser import ui

    return ui(options.host, options.port)


def _label(experiment: str) -> str:
    return os.path.splitext(os.path.basename(experiment))[0]


if __name__ == "__main__":
    sys.exit(main())
