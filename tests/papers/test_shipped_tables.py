"""The shipped tables: they load, their cells can run, and the settings that records leave out stay what they are."""

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_lightning.config import Experiment
from fl_lightning.papers import (
    SIZES,
    Order,
    Printed,
    Records,
    SizeName,
    TableCell,
    TableRuns,
    experiments,
    find_tables,
    page,
    paper_lines,
)
from fl_lightning.papers._records import chosen
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import flatten

SHIPPED = find_tables([])
ROOT = Path(__file__).parents[2]
DEFAULTS = Path(__file__).parent / "defaults.json"


@cache
def cells_of(name: str, size: SizeName) -> dict[TableCell, Experiment]:
    return experiments(SHIPPED[name], size)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_load_and_their_cells_can_run(name: str):
    table = SHIPPED[name]
    for size in table.sizes:
        cells = cells_of(name, size)
        assert cells
        # A column that replaces what a row has set would make rows equal, and only figures would tell.
        seen: dict[str, str] = {}
        for cell, one in cells.items():
            assert seen.setdefault(one.fingerprint(), cell.row) == cell.row, (cell, size)
    claims = list(table.claims())
    assert claims
    assert len({claim.id for claim in claims}) == len(claims)
    text = (CONFIGS / "paper" / f"{name.replace(':', '/')}.yaml").read_text()
    assert text.startswith("#"), "a comment says which paper"


def used() -> dict[str, type]:
    """Classes of all settings in the shipped tables, by `slot.name` or name."""
    classes: dict[str, type] = {"Experiment": Experiment}

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif known := getattr(type(value), "__pydantic_fields__", None):
            classes.setdefault(type(value).__name__, type(value))
            for name in known:
                visit(getattr(value, name))

    for table_name, table in SHIPPED.items():
        for size in table.sizes:
            for one in cells_of(table_name, size).values():
                visit(one)
    return classes


def defaults(cls: Any) -> dict[str, Any]:
    fields = cls.__pydantic_fields__.items()
    return {
        name: chosen(field.get_default(call_default_factory=True)) for name, field in fields if not field.is_required()
    }


def test_no_default_that_a_record_leaves_out_has_changed():
    """A digest leaves defaults out, so that a changed one would let old records stand for other experiments.

    A default may change where the shipped tables say the old value themselves; then the snapshot changes with it. A new setting
    is added to it by `python tests/papers/test_shipped_tables.py`.
    """
    known = json.loads(DEFAULTS.read_text())
    today = {name: json.loads(json.dumps(defaults(cls))) for name, cls in used().items()}
    for name, before in known.items():
        if name in today:
            assert {field: today[name].get(field, "gone") for field in before} == before, name
    assert set(today) - set(known) == set(), "run: python tests/papers/test_shipped_tables.py"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_table_says_where_it_is_not_as_the_paper_prints(name: str):
    """The paper's own setting at the largest size; what differs must stand in the words of the table's `setting`."""
    about = yaml.safe_load((Path(__file__).parent / "printed.yaml").read_text())[name]
    size = next(size for size in SIZES if size in SHIPPED[name].sizes)
    flat = [flatten(one.to_dict()) for one in cells_of(name, size).values()]
    differing = set()
    for path, printed in about["printed"].items():
        here = {one[path] for one in flat if path in one}
        if here != set(printed if isinstance(printed, list) else [printed]):
            differing.add(path)
    assert differing == set(about.get("differs", ()))
    for words in about.get("differs", {}).values():
        assert words in SHIPPED[name].setting


@pytest.mark.parametrize("name", SHIPPED)
def test_what_matters_is_no_more_than_half_of_what_the_paper_prints(name: str):
    """An order is confirmed only above what matters: the paper's own difference must be able to be."""
    values = {
        (own.metric, cell): value
        for claim in SHIPPED[name].claims()
        if isinstance(own := claim.rule, Printed) and (value := claim.printed) is not None
        for cell in claim.cells
    }
    for claim in SHIPPED[name].claims():
        if isinstance(order := claim.rule, Order) and order.matters:
            high, low = (values.get((order.metric, cell)) for cell in claim.cells)
            if high is not None and low is not None:
                assert order.matters <= (high - low) / 2 + 1e-12, claim.id


def test_page_and_readme_say_what_the_records_say():
    """Where this fails: python docs/results.py."""
    script = runpy.run_path(str(ROOT / "docs" / "results.py"))
    records = Records(ROOT / "results")
    for path, name, write in ((script["PAGE"], "verdicts", page), (script["README"], "papers", paper_lines)):
        assert script["within"](path.read_text(), name, write(SHIPPED, records)) == path.read_text(), path.name


def test_records_are_of_today_s_tables_and_small():
    records = Records(ROOT / "results")
    for name, table in SHIPPED.items():
        if found := records.of(name):
            runs = TableRuns(name, table, records)
            known = {config for size in table.sizes for config, _ in runs.cells(size).values()}
            assert {config for config, _ in found} <= known, f"{name}: python docs/results.py --prune"
    assert sum(path.stat().st_size for path in (ROOT / "results").glob("*.jsonl")) < 20e6


def test_every_shipped_size_has_five_seeds_at_least():
    assert all(len(size.seeds) >= 5 for table in SHIPPED.values() for size in table.sizes.values())


if __name__ == "__main__":
    known = json.loads(DEFAULTS.read_text()) if DEFAULTS.is_file() else {}
    for name, cls in used().items():
        known[name] = {**json.loads(json.dumps(defaults(cls))), **known.get(name, {})}
    DEFAULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
