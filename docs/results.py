"""Write what the records in `results/` say: the claims in docs/results.md, a line a paper in README.md.

python docs/results.py            # after `fl-lightning reproduce`
python docs/results.py --prune    # also drop records of configurations that no table has today
"""

import sys
from pathlib import Path

from fl_lightning.papers import SIZES, Records, TableRuns, find_tables, page, paper_lines

HERE = Path(__file__).parent
README, PAGE, RESULTS = HERE.parent / "README.md", HERE / "results.md", HERE.parent / "results"


def main() -> None:
    """Write both."""
    tables, records = find_tables([]), Records(RESULTS)
    if "--prune" in sys.argv:
        for name, table in tables.items():
            runs = TableRuns(name, table, records)
            known = {config for size in SIZES for config, _ in runs.cells(size).values()} if records.of(name) else set()
            records.drop(name, [key for key in records.of(name) if key[0] not in known])
    PAGE.write_text(within(PAGE.read_text(), "verdicts", page(tables, records)))
    README.write_text(within(README.read_text(), "papers", paper_lines(tables, records)))


def within(text: str, name: str, content: str) -> str:
    """The text with the content between `<!-- name -->` and `<!-- /name -->`."""
    head, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->")
    return f"{head}{start}{content}{end}{tail}"


if __name__ == "__main__":
    main()
