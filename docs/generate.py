"""Write the pages that follow from the code: a gallery of every method, the metrics glossary, the slot table of the README.

python docs/generate.py            # docs/methods/*.md, docs/metrics.md, the table in README.md
python docs/generate.py --check    # exit code 1 where the README is not what the registry says
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

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
        return int(README.read_text() != with_slot_table(README.read_text()))
    (HERE / "methods").mkdir(exist_ok=True)
    for slot in SLOTS:
        (HERE / "methods" / f"{slot}.md").write_text(gallery(slot))
    (HERE / "metrics.md").write_text(glossary())
    README.write_text(with_slot_table(README.read_text()))
    return 0


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
    parts = [f"## `{name}` {{#{name}}}", prose(cls)]
    if slot == "attack":
        parts.append(threat_model(cls))
    if issubclass(cls, Component) and (rows := list(field_rows(cls))):
        parts.append("| field | default | range | searched |\n|---|---|---|---|\n" + "\n".join(rows))
    shipped = CONFIGS / slot / f"{name}.yaml"
    if shipped.is_file():
        parts.append(f"As shipped (`configs/{slot}/{name}.yaml`):\n\n```yaml\n{shipped.read_text().strip()}\n```")
    parts += [background(cls), bibliography(getattr(cls, "cites", ()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def prose(cls: type) -> str:
    """The class docstring, its field list as a list."""
    text = inspect.cleandoc(cls.__doc__ or "")
    head, _, attributes = text.partition("\nAttributes:\n")
    if not attributes:
        return head
    items = re.sub(r"^(\w+): ", r"* `\1`: ", textwrap.dedent(attributes), flags=re.MULTILINE)
    return f"{head.strip()}\n\n{items.strip()}"


def threat_model(cls: Any) -> str:
    """What an attack must know, and what it can pursue."""
    return (
        f"**Threat model.** Works with `{cls.needs}` knowledge: {LEVELS[cls.needs]}. Serves: {', '.join(cls.serves)}."
    )


def field_rows(cls: Any) -> Iterator[str]:
    """One row a hyper-parameter: name, default, allowed range, range of a search."""
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        info = cls.__pydantic_fields__[field.name]
        default = "required" if info.is_required() else f"`{shown(info.get_default(call_default_factory=True))}`"
        bounds = [
            sign + str(getattr(mark, word)) for mark in info.metadata for word, sign in BOUNDS if hasattr(mark, word)
        ]
        span = next((mark for mark in getattr(hints[field.name], "__metadata__", ()) if hasattr(mark, "holds")), None)
        yield f"| `{field.name}` | {default} | {', '.join(bounds) or kind(info.annotation)} | {searched(span)} |"


BOUNDS = (("ge", "&ge; "), ("gt", "&gt; "), ("le", "&le; "), ("lt", "&lt; "))


def shown(default: Any) -> str:
    """A default in one short line."""
    text = default.name if isinstance(default, Component) else str(default)
    return text if len(text) < 40 else text[:37] + "..."


def kind(annotation: Any) -> str:
    """A type in the words of the documentation."""
    text = re.sub(r"typing\.|<class '|'>", "", str(annotation))
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), text)
    return "" if "fl_lightning" in text else text.replace("|", "or").replace("None", "null")


def searched(span: Any) -> str:
    """The range of a search."""
    if span is None:
        return ""
    if hasattr(span, "values"):
        return ", ".join(map(str, span.values))
    return f"{span.low:g} to {span.high:g}" + (" (log)" if span.log else "")


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
