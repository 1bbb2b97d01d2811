"""Write the pages that follow from the code: a gallery of every method, the metrics glossary, the slot table of the README.

python docs/generate.py            # docs/methods/*.md, metrics.md, beyond.md, the table in README.md, the index of `list`
python docs/generate.py --check    # exit code 1 where README or index are not what the registry says
"""

import inspect
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fl_lightning._matrix import load_matrix
from fl_lightning.cli._index import FILE, field_rows, prose, written
from fl_lightning.metrics import GLOSSARY
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import SLOTS, Component, named_config, registry

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
TITLES = {
    "attack": "Attacks",
    "objective": "What an attack is after",
    "pattern": "Trigger patterns",
    "aggregator": "Aggregation rules",
    "pre_aggregator": "Pre-aggregators",
    "defense": "Defenses",
    "partition": "Partitions",
    "participation": "Participation",
    "schedule": "Schedules of attacks",
    "model": "Models",
    "data": "Data sets",
    "optimizer": "Local optimizers",
    "engine": "Engines",
}
LEVELS = {
    "none": "its own data, its own honest updates and the broadcast models",
    "partial": "also the aggregation rule, and some benign updates where the setting grants them",
    "full": "also every benign update and its data, and the defenses",
}


def main() -> int:
    """Write everything, or check what is written by hand."""
    if "--check" in sys.argv:
        return int(README.read_text() != with_slot_table(README.read_text()) or FILE.read_text() != written(measured()))
    (HERE / "methods").mkdir(exist_ok=True)
    for slot in SLOTS:
        (HERE / "methods" / f"{slot}.md").write_text(gallery(slot))
    (HERE / "metrics.md").write_text(glossary())
    (HERE / "beyond.md").write_text(against_all())
    README.write_text(with_slot_table(README.read_text()))
    FILE.write_text(written(measured()))
    return 0


MEASURED = {
    "sign flip x3": "sign_flip",
    "noise 1": "gaussian",
    "IPM 0.5": "ipm",
    "ALIE 1.5": "alie",
    "label flip": "label_flip",
    "backdoor x3": "model_replacement",
}
"""Columns of the table of rules in `measured.md`, and the attacks that they are."""


def measured() -> dict[str, str]:
    """What each rule left of an attack, as the table in `measured.md` has it."""
    table = (HERE / "measured.md").read_text().partition("## Rules on digits")[2].partition("\n| rule ")[2]
    head, _, *lines = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in table.partition("\n\n")[0].splitlines()
    ]
    told: dict[str, str] = {}
    for column, attack in MEASURED.items():
        place = head.index(column)
        cells = ", ".join(f"{line[0]} {line[place + 1].partition(' [')[0]}" for line in lines)
        what = "accuracy (success)" if "(" in lines[0][place + 1] else "accuracy"
        told[attack] = f"{what} under {column} by 6 of 20 clients, {lines[0][1]} without attack: {cells}"
    return told


def with_slot_table(text: str) -> str:
    """The text with the table between its markers as the registry has it."""
    table = f"<!-- methods -->\n{slot_table()}<!-- /methods -->"
    return re.sub(r"<!-- methods -->.*<!-- /methods -->", lambda _: table, text, flags=re.DOTALL)


def slot_table() -> str:
    """How many components each slot has, and their names."""
    rows = [(slot, registry(slot).names()) for slot in SLOTS]
    lines = [f"| {slot} | {len(names)} | {' '.join(f'`{name}`' for name in names)} |" for slot, names in rows]
    return "| slot | | components |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def gallery(slot: str) -> str:
    """One page a slot, one section a component."""
    entries = [(name, registry(slot)[name]) for name in registry(slot).names()]
    title = TITLES.get(slot, slot.replace("_", " ").capitalize())
    listing = "\n".join(f"| [`{name}`](#{name}) | {summary(cls)} |" for name, cls in entries)
    sections = "\n".join(section(slot, name, cls) for name, cls in entries)
    how = f"{how_measured()}\n\n" if slot in MEASURED_SLOTS else ""
    return f"# {title}\n\n| name | what it is |\n|---|---|\n{listing}\n\n{how}{sections}"


def summary(cls: type) -> str:
    """First line of the docstring."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def section(slot: str, name: str, cls: Any) -> str:
    """Everything that class, docstring and YAML know of a component."""
    parts = [f"## `{name}` {{#{name}}}", described(cls)]
    if slot == "attack":
        parts.append(threat_model(cls))
    if issubclass(cls, Component) and (rows := list(field_rows(cls))):
        lines = (f"| `{row['name']}` | {shown(row)} | {row['range']} | {row['searched']} |" for row in rows)
        parts.append("| field | default | range | searched |\n|---|---|---|---|\n" + "\n".join(lines))
    shipped = CONFIGS / slot / f"{name}.yaml"
    if shipped.is_file():
        parts.append(f"As shipped (`configs/{slot}/{name}.yaml`):\n\n```yaml\n{shipped.read_text().strip()}\n```")
    if slot in MEASURED_SLOTS:
        parts.append(measured_rows(slot, name))
    parts += [background(cls), bibliography(getattr(cls, "cites", ()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def described(cls: type) -> str:
    """The class docstring, its field list as a list."""
    text, meanings = prose(cls)
    items = "\n".join(f"* `{name}`: {meaning}" for name, meaning in meanings.items() if name in own_attributes(cls))
    return f"{text}\n\n{items}".strip()


def own_attributes(cls: type) -> str:
    """The list of attributes in a class's own docstring."""
    return re.split(r"\n(?:Attributes|Args):\n", inspect.cleandoc(cls.__doc__ or "") + "\nAttributes:\n", maxsplit=1)[1]


def shown(row: dict[str, str]) -> str:
    """A default as code, unless there is none."""
    return row["default"] if row["default"] == "required" else f"`{row['default']}`"


def threat_model(cls: Any) -> str:
    """What an attack must know, and what it can pursue."""
    return (
        f"**Threat model.** Works with `{cls.needs}` knowledge: {LEVELS[cls.needs]}. Serves: {', '.join(cls.serves)}."
    )


def background(cls: type) -> str:
    """Formula and references: the docstring of the module."""
    text = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "")  # type: ignore[union-attr]
    return "> " + text.replace("\n", "\n> ") if "References:" in text else ""


def bibliography(keys: tuple[str, ...]) -> str:
    """The BibTeX entries that a component cites."""
    text = (CONFIGS.parent / "references.bib").read_text(encoding="utf-8")
    entries = {
        match[1]: match[0].strip() for match in re.finditer(r"^@\w+\{(\S+?),.*?^\}", text, re.DOTALL | re.MULTILINE)
    }
    found = "\n\n".join(entries[key] for key in keys)
    return f"```bibtex\n{found}\n```" if found else ""


# --- what was measured of rules and defenses: benchmarks/bench_defenses.py writes the figures --------------------------------

MEASURED_SLOTS = ("aggregator", "pre_aggregator", "defense")
FIGURES = HERE / "defenses.json"
PARTITIONS = {"iid": "iid", "dirichlet": "Dirichlet 0.5"}
NO_ATTACK = "no attack"
LITTLE, MUCH = 0.03, 0.1
"""What accuracy an attack may cost where it is called stopped, and from where on the server is called broken."""
PASSES, BREAKS = 0.1, 0.5
"""The same for the success of a backdoor."""


class Row(NamedTuple):
    """What was measured of a server on one kind of data: attack -> figures."""

    server: str
    partition: str
    cells: dict[str, dict[str, Any]]

    def accuracy(self, attack: str = NO_ATTACK) -> float:
        """Of the global model after the last round."""
        return float(self.cells[attack]["accuracy"])

    def lost(self, attack: str) -> float:
        """Accuracy that an attack costs."""
        return self.accuracy() - self.accuracy(attack)

    def success(self, attack: str) -> float:
        """Of a backdoor; 0 for untargeted attacks, whose success is the accuracy that they cost."""
        return float(self.cells[attack]["success"]) if "backdoor" in attack else 0.0

    def stops(self, attack: str) -> bool:
        """Whether an attack comes to nothing."""
        return self.lost(attack) <= LITTLE and self.success(attack) <= PASSES

    def broken_by(self, attack: str) -> bool:
        """Whether an attack reaches what it wants."""
        return self.lost(attack) > MUCH or self.success(attack) > BREAKS


@cache
def figures() -> dict[str, Any]:
    """All that was measured, and how."""
    found: dict[str, Any] = json.loads(FIGURES.read_text())
    return found


@cache
def rows() -> dict[tuple[str, str], Row]:
    """By server and partition."""
    table: dict[tuple[str, str], Row] = {}
    for cell in figures()["rows"]:
        key = cell["server"], cell["partition"]
        table.setdefault(key, Row(*key, {})).cells[cell["attack"]] = cell
    return table


@cache
def servers() -> dict[tuple[str, str], list[str]]:
    """Slot and name of a component -> the servers of the matrix that it is part of."""
    found: dict[tuple[str, str], list[str]] = {}

    def named(slot: str, value: Any) -> dict[str, Any]:
        return (named_config(slot, value) or {"name": value}) if isinstance(value, str) else value

    for server, change in load_matrix("defenses_beyond").servers.items():
        rule = named("aggregator", change.get("aggregator", "mean"))
        parts = [("pre_aggregator", named("pre_aggregator", one)["name"]) for one in rule.get("pre", ())]
        parts += [("defense", named("defense", one)["name"]) for one in change.get("defenses", {}).values()]
        if "aggregator" in change or not change:
            parts.append(("aggregator", rule["name"]))
        for part in parts:
            found.setdefault(part, []).append(server)
    return found


def how_measured() -> str:
    """One paragraph for a page."""
    about = figures()
    seeds = sorted({cell["seeds"] for cell in about["rows"]})
    return (
        "## How it was measured { #how-measured }\n\n"
        f"The rows *measured* below: `matrix defenses_beyond`, {about['rounds']} rounds on the bundled digits, softmax "
        "regression, 20 clients of which 6 are malicious where there is an attack, the mean where no rule is named; accuracy, "
        "for backdoors (trigger success), and [the attackers' share of what the server used], of the last round, means over "
        f"{' or '.join(map(str, seeds))} seeds (most attacks on Dirichlet data: one). *Dropped* is the share of honest rows that "
        "the defenses remove without an attack. 260 test images: differences of two hundredths say nothing. Command: "
        f"`{about['command']} --out cells.jsonl --seeds {max(seeds)}`; torch {about['torch']}, {about['date']}. An attack is "
        f"called *stopped* that takes at most {LITTLE} of accuracy and leaves a trigger at most {PASSES} success where it "
        f"harms the plain mean; a server is *broken* by one that takes more than {MUCH} or whose trigger succeeds more often "
        f"than {BREAKS}."
    )


def measured_rows(slot: str, name: str) -> str:
    """The rows of every server that a component is part of, and what they say in words."""
    known = [(server, where) for server in servers().get((slot, name), ()) for where in PARTITIONS]
    found = [rows()[key] for key in known if key in rows()]
    if not found:
        return "Not measured: not part of `matrix defenses_beyond`, or too slow for twenty clients."
    attacks = list(load_matrix("defenses_beyond").attacks)
    head = f"| measured | data | dropped | {NO_ATTACK} | {' | '.join(attacks)} |\n|{'---|' * (len(attacks) + 4)}"
    lines = [table_line(row, attacks) for row in found]
    words = [in_words(row, attacks) for row in found]
    return "\n".join([head, *lines, "", *(f"* {text}" for text in words), "", "[How it was measured](#how-measured)."])


def table_line(row: Row, attacks: list[str]) -> str:
    """One row of the table."""

    def shown(attack: str) -> str:
        if attack not in row.cells:
            return "-"
        cell = row.cells[attack]
        success = f" ({cell['success']:.2f})" if "backdoor" in attack else ""
        selected = "" if cell["selected"] is None or attack == NO_ATTACK else f" [{cell['selected']:.2f}]"
        return f"{cell['accuracy']:.2f}{success}{selected}"

    dropped = row.cells[NO_ATTACK]["false_alarms"]
    cells = [row.server, PARTITIONS[row.partition], "-" if dropped is None else f"{dropped:.2f}"]
    return f"| {' | '.join(cells + [shown(attack) for attack in (NO_ATTACK, *attacks)])} |"


def in_words(row: Row, attacks: list[str]) -> str:
    """What it stops, what breaks it, what it costs without an attack."""
    mean, seen = rows()["mean", row.partition], [attack for attack in attacks if attack in row.cells]
    harmful = [attack for attack in seen if not mean.stops(attack)]
    dropped = row.cells[NO_ATTACK]["false_alarms"]
    cost = f"without an attack {row.accuracy():.2f} (the mean {mean.accuracy():.2f})"
    if dropped:
        cost += f", {dropped:.0%} of the honest rows dropped"
    if not seen:
        return f"{row.server}, {PARTITIONS[row.partition]}: costs {cost}."
    stopped = [attack for attack in harmful if row.stops(attack)]
    breaks = [attack for attack in seen if row.broken_by(attack)]
    return (
        f"{row.server}, {PARTITIONS[row.partition]}: stops {', '.join(stopped) or 'none'} of the {len(harmful)} attacks that "
        f"harm the mean; is broken by {', '.join(breaks) or 'none'}; costs {cost}."
    )


def against_all() -> str:
    """All servers against all attacks, a table for each kind of data: first those that fewest attacks break."""
    attacks = list(load_matrix("defenses_beyond").attacks)
    parts = ["# Attacks against many servers", how_measured().partition("\n\n")[2].replace("below", "here", 1)]
    parts.append(
        "Servers that fewest attacks break stand first, of those the ones that keep more accuracy under their worst attack; "
        "servers within two hundredths of each other cannot be told apart. Nobody tuned these attacks against a server: "
        "`fl-lightning sweep` does, and finds stronger ones."
    )
    for partition, words in PARTITIONS.items():
        known = [
            row for (_, where), row in rows().items() if where == partition and any(one in row.cells for one in attacks)
        ]
        lines = [table_line(row, attacks) for row in sorted(known, key=lambda row: standing(row, attacks))]
        head = f"| server | data | dropped | {NO_ATTACK} | {' | '.join(attacks)} |\n|{'---|' * (len(attacks) + 4)}"
        parts.append(f"## {words} {{#{partition}}}\n\n" + "\n".join([head, *lines]))
    return "\n\n".join(parts) + "\n"


def standing(row: Row, attacks: list[str]) -> tuple[int, float]:
    """How many attacks break a server, and the accuracy that the worst leaves, the larger the smaller."""
    seen = [attack for attack in attacks if attack in row.cells]
    return sum(row.broken_by(attack) for attack in seen), -min(row.accuracy(attack) for attack in seen)


def glossary() -> str:
    """Every metric, what it means, and which way is better for whom."""
    rows = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in GLOSSARY.items())
    return f"# Metrics\n\n| metric | meaning |\n|---|---|\n{rows}\n"


if __name__ == "__main__":
    sys.exit(main())
