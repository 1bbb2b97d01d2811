"""Write the pages that follow from the code: a gallery of every method, the metrics glossary, the slot table of the README.

python docs/generate.py            # docs/methods/*.md, docs/metrics.md, the table in README.md, the index of `fl-lightning list`
python docs/generate.py --check    # exit code 1 where README or index are not what the registry says
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from fl_lightning.cli._index import FILE, field_rows, prose, written
from fl_lightning.metrics import GLOSSARY
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import SLOTS, Component, registry

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
    lines = [
        f"| [{slot}](docs/methods/{slot}.md) | {len(names)} | {' '.join(f'`{name}`' for name in names)} |"
        for slot, names in rows
    ]
    return "| slot | | components |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def gallery(slot: str) -> str:
    """One page a slot, one section a component."""
    entries = [(name, registry(slot)[name]) for name in registry(slot).names()]
    title = TITLES.get(slot, slot.replace("_", " ").capitalize())
    listing = "\n".join(f"| [`{name}`](#{name}) | {summary(cls)} |" for name, cls in entries)
    sections = "\n".join(section(slot, name, cls) for name, cls in entries)
    return f"# {title}\n\n| name | what it is |\n|---|---|\n{listing}\n\n{sections}"


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
    text = (Path(inspect.getfile(Component)).parent / "references.bib").read_text()
    entries = {
        match[1]: match[0].strip() for match in re.finditer(r"^@\w+\{(\S+?),.*?^\}", text, re.DOTALL | re.MULTILINE)
    }
    found = "\n\n".join(entries[key] for key in keys)
    return f"```bibtex\n{found}\n```" if found else ""


def glossary() -> str:
    """Every metric, what it means, and which way is better for whom."""
    rows = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in GLOSSARY.items())
    return f"# Metrics\n\n| metric | meaning |\n|---|---|\n{rows}\n"


if __name__ == "__main__":
    sys.exit(main())
