"""`fl-lightning import`: configurations of neighbours as ours."""

import argparse
import shlex
import sys
from pathlib import Path

from fl_lightning.errors import ConfigError
from fl_lightning.integrations import read_foreign

__all__ = ["import_foreign"]


def import_foreign(options: argparse.Namespace) -> int:
    """Print the translation, or write it to a file; what was not translated goes to stderr, too.

    Raises:
        ConfigError: the file is none that is known, or there is a file of the other name already.
    """
    foreign = read_foreign(Path(options.file), every=options.all)
    if options.out is None:
        print(foreign.yaml(), end="")
    else:
        target = Path(options.out)
        if target.exists():
            raise ConfigError(f"{target} is there already; choose another name")
        target.write_text(foreign.yaml(), encoding="utf-8")
        command = "run" if foreign.kind == "experiment" else "matrix"
        print(f"{target} holds the {foreign.kind}: fl-lightning {command} {shlex.quote(str(target))}")
    for line in foreign.unknown:
        print(f"not translated, or not quite the same: {line}", file=sys.stderr)
    return 0
