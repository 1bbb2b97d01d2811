"""What can be typed after `fl-lightning`; nothing heavy is imported to answer `--help`."""

import argparse
from typing import TypeAlias

from fl_lightning.cli._arguments import Parser, count, jobs, port

__all__ = ["parser"]

DESCRIPTION = "Measure how badly federated learning can be poisoned, and what stops it."
EXAMPLES = """examples:
  fl-lightning run mnist                              one tracked experiment
  fl-lightning run mnist attack.boost=5 rounds=10     the same with changes
  fl-lightning run mnist --dry-run                    how long it would take, and what it needs
  fl-lightning run --resume RUN_ID                    go on after a kill
  fl-lightning sweep mnist_backdoor sweep.trials=20   search the strongest attack
  fl-lightning list attack alie                       an attack, its fields and its paper
  fl-lightning ui                                     look at all of it in the browser
"""


class Version(argparse.Action):
    """`--version`: ours, and of what the figures depend on; read from metadata, nothing is imported."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it, and leave."""
        from importlib.metadata import PackageNotFoundError, version

        def of(name: str) -> str:
            try:
                return f"{name} {version(name)}"
            except PackageNotFoundError:
                return f"{name}: not installed"

        others = ", ".join(map(of, ("torch", "lightning", "mlflow", "optuna")))
        print(f"{of('fl-lightning')} ({others})")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line. `action` of what is parsed names the function that answers: `module:function` in this folder."""
    top = Parser(
        "fl-lightning", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version, and those of what it stands on")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_runs(commands)
    _add_crossings(commands)
    _add_looking(commands)
    _add_keeping(commands)
    return top


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _add(commands: Commands, name: str, action: str, help: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=help, description=help)
    sub.add_argument(
        "--debug", action="store_true", help="tell an error with its traceback; so does FL_LIGHTNING_DEBUG=1"
    )
    sub.set_defaults(action=action)
    return sub


def _add_experiment(sub: argparse.ArgumentParser, optional: bool = False) -> None:
    what = "a name from `fl-lightning list experiment`, or a YAML file"
    sub.add_argument("experiment", metavar="EXPERIMENT", nargs="?" if optional else None, help=what)
    _add_changes(sub)


def _add_changes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("overrides", metavar="path=value", nargs="*", default=[], help="changes, such as attack.boost=5")
    sub.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")


def _add_output(sub: argparse.ArgumentParser, dry: bool = True) -> None:
    sub.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress; errors and the result only")
    if dry:
        sub.add_argument("--dry-run", action="store_true", help="clients, parameters, memory and minutes; runs nothing")


def _add_runs(commands: Commands) -> None:
    run = _add(commands, "run", "_main:run", "run one experiment, tracked in MLflow")
    _add_experiment(run, optional=True)
    run.add_argument("--resume", metavar="RUN_ID", help="continue a run that was killed")
    run.add_argument("--all", action="store_true", help="print all figures, not only success and accuracy")
    _add_output(run)
    sweep = _add(commands, "sweep", "_main:sweep", "search the strongest attack, or the best defense, with Optuna")
    _add_experiment(sweep)
    sweep.add_argument(
        "--enqueue",
        metavar="'path=value ...'",
        action="append",
        default=[],
        help="a trial of your own that is tried first, such as 'attack.boost=5 attack.epochs=3'; once for each trial",
    )
    _add_output(sweep)


def _add_crossings(commands: Commands) -> None:
    matrix = _add(commands, "matrix", "_main:matrix", "cross attacks with servers over several seeds")
    matrix.add_argument("matrix", metavar="MATRIX", help="a name from `fl-lightning list matrix`, or a YAML file")
    _add_changes(matrix)
    matrix.add_argument("--out", metavar="DIR", help="write csv, tex, pdf and bib of the table there")
    _add_output(matrix)
    certify = _add(
        commands, "certify", "_certify:certify", "certified accuracy: FLCert's vote of groups, or CRFL's smoothed model"
    )
    _add_experiment(certify)
    certify.add_argument("--groups", type=int, metavar="G", help="FLCert: so many disjoint groups of clients vote")
    certify.add_argument("--copies", type=int, default=1000, help="CRFL: noised copies of the final model")
    certify.add_argument("--alpha", type=float, default=0.001, help="CRFL: chance that a sample's bounds do not hold")
    certify.add_argument("--jobs", type=jobs, default=1, help="FLCert: worker processes; ray: on a Ray cluster")
    _add_output(certify, dry=False)
    papers = _add(
        commands, "reproduce", "_reproduce:reproduce", "run the papers' tables and figures again, judge their claims"
    )
    papers.add_argument(
        "tables",
        metavar="PAPER[:TABLE]",
        nargs="*",
        default=[],
        help="such as cmp or cmp:table-4, or a YAML file; `all`; none: list them",
    )
    papers.add_argument(
        "--size", choices=["quick", "reduced", "full"], default="quick", help="minutes, or up to the paper's size"
    )
    papers.add_argument("--check", type=count, metavar="N", help="draw N records at random, run them again, compare")
    papers.add_argument("--minutes", type=float, help="--check: records that fit so many minutes together")
    papers.add_argument("--seed", type=int, default=0, help="--check: of the draw")
    papers.add_argument("--jobs", type=jobs, default=2, help="worker processes; ray: on a Ray cluster")
    papers.add_argument("--fast", action="store_true", help="synthetic data and few rounds: does it run at all?")
    papers.add_argument(
        "--write", metavar="FILE", help="put the verdicts between `<!-- verdicts -->` markers of a file"
    )
    _add_output(papers, dry=False)


def _add_looking(commands: Commands) -> None:
    listing = _add(commands, "list", "_listing:listing", "list what a slot can hold, or all about one thing in it")
    listing.add_argument("slot", nargs="?", help="experiment, matrix, paper, attack, aggregator, ...; none: all slots")
    listing.add_argument("name", nargs="?", help="one of it: its fields, defaults, ranges, paper, threat model")
    listing.add_argument(
        "--plugins", action="store_true", help="what installed packages add, and what is wrong with it"
    )
    show = _add(commands, "show", "_main:show", "print the resolved configuration of an experiment as YAML")
    _add_experiment(show)
    schema = _add(commands, "schema", "_schema:schema", "print the JSON schema of an experiment, for editors")
    schema.add_argument("kind", nargs="?", choices=["experiment", "matrix"], default="experiment")
    compare = _add(
        commands, "compare", "_compare:compare", "set runs beside each other: what differs, and their figures"
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run ids of MLflow, or the first digits of them")
    compare.add_argument("--all", action="store_true", help="all figures, not only success and accuracy")
    compare.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    cite = _add(commands, "cite", "_main:cite", "print BibTeX of exactly what an experiment or a run uses")
    cite.add_argument("what", metavar="EXPERIMENT|RUN_ID", help="a name, a YAML file, or a run, search or matrix")
    cite.add_argument("overrides", metavar="path=value", nargs="*", help="changes of an experiment")
    ui = _add(commands, "ui", "_main:ui", "open the MLflow UI on the runs")
    ui.add_argument("--port", type=port, default=5000)
    ui.add_argument("--host", default="127.0.0.1")


def _add_keeping(commands: Commands) -> None:
    models = _add(
        commands, "models", "_main:models", "registered poisoned models: list, show, compare, export, analyze"
    )
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
    data = _add(commands, "data", "_data:data", "get data sets, list what is there, or show what one holds")
    data.add_argument("verb", choices=["get", "list", "show"])
    data.add_argument(
        "names", metavar="NAME", nargs="*", default=[], help="data sets to get; to show: a data set or an experiment"
    )
    packing = _add(
        commands, "pack", "_pack:pack", "write one run, search or matrix, with all that belongs to it, to a file"
    )
    packing.add_argument("what", metavar="RUN|STUDY", help="id of a run, or name of a study")
    packing.add_argument("file", metavar="FILE.zip", help="the file to write; it must not exist")
    unpacking = _add(
        commands, "unpack", "_pack:unpack", "take what `pack` wrote into this runs folder; nothing in it is executed"
    )
    unpacking.add_argument("file", metavar="FILE.zip", help="what `pack` wrote")
    gc = _add(commands, "gc", "_gc:gc", "what the runs take on disk, and what of it can go")
    gc.add_argument(
        "what",
        metavar="WHAT",
        nargs="*",
        default=[],
        help="what is to go: trials (models of trials that did not win), checkpoints (of runs that cannot go on), "
        "deleted (runs deleted in MLflow), warmups; none: list all",
    )
    gc.add_argument("--yes", action="store_true", help="remove it; without, only a list is printed")
    skeleton = _add(commands, "new", "_main:new", "write the package of a method of your own, with its tests")
    skeleton.add_argument("kind", choices=["aggregator", "attack", "defense", "experiment"])
    skeleton.add_argument("name", metavar="NAME", help="as configurations will write it, such as shortest_mean")
    foreign = _add(
        commands, "import", "_import:import_foreign", "print a configuration of ByzFL, FLPoison or BackFed as ours"
    )
    foreign.add_argument(
        "file", metavar="FILE", help="JSON of ByzFL, YAML of FLPoison, or YAML of BackFed in its folder"
    )
    foreign.add_argument(
        "--all", action="store_true", help="FLPoison: every listed attack and defense, not the chosen ones"
    )
    foreign.add_argument("--out", metavar="FILE", help="write it there")
    completion = _add(commands, "completion", "_completion:completion", "print completion for a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
