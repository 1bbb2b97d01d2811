"""The command `fl-lightning schema`: what an experiment may hold, as a JSON schema for editors.

With `# yaml-language-server: $schema=experiment.schema.json` in its first line, a YAML file is completed and checked while it is
written.
"""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema

from fl_lightning.cli._index import prose
from fl_lightning.config import Experiment
from fl_lightning.inputs import strict_json
from fl_lightning.paths import config_names
from fl_lightning.registry import SLOT_KEY, SLOTS, Component, name_of, registry, summary

__all__ = ["experiment_schema", "matrix_schema", "schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(options: argparse.Namespace) -> int:
    """Print it; returns the exit code."""
    print(strict_json(matrix_schema() if options.kind == "matrix" else experiment_schema()))
    return 0


class Lenient(GenerateJsonSchema):
    """Says nothing of what only code can check."""

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:
        """Anything."""
        return {}

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Without defaults: what is left out keeps its own."""
        return self.generate_inner(schema["schema"])

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        """As pydantic does; nothing is said twice."""
        return super().generate(schema, mode)


def experiment_schema() -> dict[str, Any]:
    """The schema of an experiment: every slot with its components, their fields and ranges."""
    parts: dict[str, Any] = {slot: _slot(slot) for slot in SLOTS}
    whole = _schema(Experiment, parts)
    for name in ("client", "sweep"):
        whole["properties"][name] = {"anyOf": [{"enum": config_names(name)}, whole["properties"][name]]}
    _describe(whole, Experiment)
    return {"$schema": DIALECT, "title": "An experiment of fl_lightning", **whole, "$defs": parts}


def matrix_schema() -> dict[str, Any]:
    """The schema of a matrix."""
    from fl_lightning._matrix import Matrix

    parts: dict[str, Any] = {slot: _slot(slot) for slot in SLOTS}
    whole = _schema(Matrix, parts)
    whole["properties"]["attacks"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/attack"}}
    _describe(whole, Matrix)
    return {"$schema": DIALECT, "title": "A matrix of fl_lightning", **whole, "$defs": parts}


def _schema(cls: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Pydantic's schema of a class, with what it defines moved to `parts`, and slots in their places."""
    made = TypeAdapter(cls).json_schema(schema_generator=Lenient)
    for name, part in made.pop("$defs", {}).items():
        if name not in parts:
            parts[name] = None  # it may hold itself
            parts[name] = _placed(part)
    placed: dict[str, Any] = _placed(made)
    return placed


def _placed(node: Any) -> Any:
    """Slots as references to what they can hold."""
    if isinstance(node, Mapping):
        if SLOT_KEY in node:
            return {"$ref": f"#/$defs/{node[SLOT_KEY]}"}
        return {key: _placed(value) for key, value in node.items()}
    return [_placed(item) for item in node] if isinstance(node, list) else node


def _slot(slot: str) -> dict[str, Any]:
    """What a slot can hold: a name, `module:Class`, or one of the components with its fields."""
    classes = list(registry(slot))
    names = sorted({*map(name_of, classes), *config_names(slot)})
    word = {"anyOf": [{"enum": names}, {"type": "string", "pattern": "^[\\w.]+:[\\w.]+$"}]}
    own = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": ":"}},
        "required": ["name"],
    }
    return {"anyOf": [word, *map(_component, classes), own]}


def _component(cls: type) -> dict[str, Any]:
    name = {"const": name_of(cls)}
    if not issubclass(cls, Component):  # a Lightning callback: its arguments
        known = inspect.signature(cls).parameters
        options: dict[str, Any] = {word: {} for word in known}
        closed: dict[str, Any] = {"additionalProperties": False}
        return {"type": "object", "properties": {"name": name, **options}, "required": ["name"], **closed}
    parts: dict[str, Any] = {}
    made = _schema(cls, parts)
    made["properties"] = {"name": name, **made.get("properties", {})}
    made["required"] = ["name", *made.get("required", [])]
    made["$defs"] = parts
    _describe(made, cls)
    return _inlined(made)


def _inlined(made: dict[str, Any]) -> dict[str, Any]:
    """A component's own definitions in their places; they are few and hold no component."""
    parts = made.pop("$defs")

    def inner(node: Any) -> Any:
        if isinstance(node, Mapping):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            return inner(parts[name]) if name in parts else {key: inner(value) for key, value in node.items()}
        return [inner(item) for item in node] if isinstance(node, list) else node

    placed: dict[str, Any] = inner(made)
    return placed


def _describe(made: dict[str, Any], cls: type) -> None:
    """What docstrings say, where an editor shows it."""
    made["description"] = summary(cls)
    for name, meaning in prose(cls)[1].items():
        if name in made["properties"]:
            made["properties"][name] = {**made["properties"][name], "description": meaning}
