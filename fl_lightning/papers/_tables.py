"""Tables of papers by name, and the experiments of their cells."""

from collections.abc import Sequence

from pydantic import ValidationError

from fl_lightning.config import Experiment, load, read_yaml
from fl_lightning.errors import ConfigError, errors_under, explain, suggest
from fl_lightning.papers._claims import PaperTable, SizeName, TableCell
from fl_lightning.paths import CONFIGS

__all__ = ["LIGHT", "experiments", "find_tables"]

LIGHT = {"tracking.register": "never", "tracking.models": False, "tracking.checkpoint_every": 10}
"""Hundreds of small runs, of which the figures are wanted."""


def find_tables(words: Sequence[str]) -> dict[str, PaperTable]:
    """Tables by name: `cmp`, `cmp:table-4`, or a path to a YAML file; all shipped ones where no word is given.

    Raises:
        ConfigError: no such paper or table, or something wrong in its file.
    """
    shipped = {f"{path.parent.name}:{path.stem}": path for path in sorted((CONFIGS / "paper").glob("*/*.yaml"))}
    chosen: dict[str, str] = {}
    for word in words or sorted({name.partition(":")[0] for name in shipped}):
        own = {name: str(path) for name, path in shipped.items() if word in (name, name.partition(":")[0])}
        if not own and not word.endswith(".yaml"):
            names = [*{name.partition(":")[0]: None for name in shipped}, *shipped]
            raise ConfigError(f"no paper or table {word!r}; {suggest(word, names)}")
        chosen |= own or {word: word}
    return {name: _table(name, path) for name, path in chosen.items()}


def _table(name: str, path: str) -> PaperTable:
    with errors_under(name):
        tree = read_yaml("paper", path)
        try:
            return PaperTable.model_validate(tree)
        except ValidationError as error:
            explain(error, PaperTable)


def experiments(table: PaperTable, size: SizeName, fast: bool = False) -> dict[TableCell, Experiment]:
    """The experiment of every cell that this size runs, with its seeds.

    Raises:
        ConfigError: naming the cell that cannot run.
    """
    if size not in table.sizes:
        raise ConfigError(f"has no size {size!r}; {suggest(size, table.sizes)}")
    own, base = table.sizes[size], load(table.base)
    cells = {}
    for row, by_row in table.rows.items():
        if row in own.leave_out:
            continue
        for column, by_column in table.columns.items():
            changes = own.changes | by_row | own.rows.get(row, {}) | by_column
            changes.pop("over", None)
            with errors_under(f"{row} | {column}"):
                experiment = base.override({"seeds": list(own.seeds), **LIGHT, **changes})
            cells[TableCell(row, column)] = experiment.faster() if fast else experiment
    return cells
