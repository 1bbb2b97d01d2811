"""What the records say, as a page of the documentation and as lines of the README."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fl_lightning.papers._claims import SIZES, VERDICTS, PaperTable
from fl_lightning.papers._records import Record, Records
from fl_lightning.papers._verdicts import Judged, Reproduction, TableRuns, judge

__all__ = ["counts", "page", "paper_lines"]

PAPERS = {
    "cmp": ("CMP", "covert model poisoning against the mean and against Krum (Wei et al.)"),
    "pdrr": ("PDRR", "Fang's attacks, and a detector of them (Lu et al.)"),
    "deep": ("Deep", "deep model poisoning with a curvature penalty (Zhou et al.)"),
    "multi-party": ("Multi-party", "colluding targeted attackers (Chen et al.)"),
    "fl-wbc": ("FL-WBC", "a defense at the clients (Sun et al.)"),
}
"""Name and contents, in the order in which they are shown."""


def page(tables: Mapping[str, PaperTable], records: Records) -> str:
    """Every claim of the tables with its printed value, interval, verdict and size, below setting and command.

    Args:
        tables: by name, `paper:table`.
        records: what was run.
    """
    judged, runs = _judged(tables, records)
    rates = Reproduction("", judged, ()).rates()
    parts = [_summary(judged)]
    for paper, (title, about) in PAPERS.items():
        own = [name for name in tables if name.partition(":")[0] == paper]
        if own:
            parts.append(f"## {title} {{#{paper}}}\n\n{about[0].upper()}{about[1:]}.")
        for name in own:
            of_table = [(one, rate) for one, rate in zip(judged, rates, strict=True) if one.table == name]
            parts.append(_section(runs[name], of_table))
    return "\n\n".join(parts) + "\n"


def paper_lines(tables: Mapping[str, PaperTable], records: Records) -> str:
    """A paper a line: what it is, its claims by verdict, and the sizes that they were decided from."""
    judged, _ = _judged(tables, records)
    lines = ["| paper | what it is | its claims here | decided from |", "|---|---|---|---|"]
    for paper, (title, about) in PAPERS.items():
        own = [one for one in judged if one.table.partition(":")[0] == paper]
        verdicts, sizes = counts(own)
        lines.append(f"| [{title}](docs/results.md#{paper}) | {about} | {_told(verdicts)} | {_told(sizes)} |")
    return "\n".join(lines) + "\n"


def counts(judged: Iterable[Judged]) -> tuple[dict[str, int], dict[str, int]]:
    """How many claims got each verdict, and from each size; those that follow from others are not counted again."""
    own = [one for one in judged if not one.claim.follows]
    verdicts = Counter(one.verdict if one.size else "not run" for one in own)
    sizes = Counter(one.size for one in own)
    return {name: verdicts[name] for name in (*VERDICTS, "not run")}, {size: sizes[size] for size in SIZES}


def _judged(tables: Mapping[str, PaperTable], records: Records) -> tuple[tuple[Judged, ...], dict[str, TableRuns]]:
    runs = {name: TableRuns(name, table, records) for name, table in tables.items()}
    return tuple(one for own in runs.values() for one in judge(own)), runs


def _told(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number) or "-"


def _summary(judged: Sequence[Judged]) -> str:
    """The counts of every paper as a table."""
    names = (*VERDICTS, "not run")
    lines = [f"| paper | {' | '.join(names)} | decided from |", "|---" * (2 + len(names)) + "|"]
    for paper, (title, _) in PAPERS.items():
        verdicts, sizes = counts(one for one in judged if one.table.partition(":")[0] == paper)
        numbers = " | ".join(str(verdicts[name]) for name in names)
        lines.append(f"| [{title}](#{paper}) | {numbers} | {_told(sizes)} |")
    also = sum(bool(one.claim.follows) for one in judged)
    return "\n".join(lines) + f"\n\n{also} further claims follow from these and are not counted again."


def _section(runs: TableRuns, judged: Sequence[tuple[Judged, float]]) -> str:
    """One table: setting, deviations, command, what was run, and a row a claim."""
    anchor = runs.name.replace(":", "-")
    rows = [
        "| claim | | printed | measured | seeds | verdict | p, adjusted | size |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [_row(one, rate) for one, rate in judged]
    return "\n\n".join(
        (
            f"### {runs.table.title} {{#{anchor}}}",
            runs.table.setting,
            f"`fl-lightning reproduce {runs.name}` {_machine(runs.records.of(runs.name).values())}",
            "\n".join(rows),
        )
    )


def _row(one: Judged, rate: float) -> str:
    follows = f" (follows: {one.claim.follows})" if one.claim.follows else ""
    differs = "".join(f"; {size}: {verdict}" for size, verdict in one.smaller.items() if verdict != one.verdict)
    cells = (
        one.claim.id,
        one.claim.says,
        "" if one.claim.printed is None else f"{one.claim.printed:g}",
        str(one.found or ""),
        str(one.found.n if one.found else ""),
        (one.verdict if one.size else "not run") + follows + differs,
        "" if math.isnan(rate) else f"{rate:.3f}" if rate >= 0.001 else "< 0.001",
        one.size or "",
    )
    return f"| {' | '.join(cells)} |"


def _machine(records: Iterable[Record]) -> str:
    """On what, in how long and with which revisions the records of a table were made."""
    made = list(records)
    if not made:
        return "has no records yet."
    where = sorted({f"{one.cpu} ({one.threads} threads)" if one.threads > 1 else one.cpu for one in made})
    hours = math.fsum(one.seconds for one in made) / 3600
    revisions = sorted({one.revision[:7] + ("+" if one.revision.endswith("+") else "") for one in made})
    return f"has {len(made)} records: {hours:.1f} hours by the clock, on {', '.join(where)}, revision {', '.join(revisions)}."
