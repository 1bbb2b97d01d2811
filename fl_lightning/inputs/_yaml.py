"""The one reader of YAML: what a file seems to say is what is read, or it is refused in one line.

Plain scalars follow the core schema of YAML 1.2 and no more: `1e-3` is a number; `yes`, `on` and `1:01` are text, which
a field of numbers then refuses. Keys are text, or whole numbers (classes in a label map), and stand once. What a hostile
file could ask for is bounded before it is built: its size with all aliases written out, its depth, the length of its
numbers; there is no way to name a class.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import BaseResolver

from fl_lightning.errors import ConfigError, excerpt

__all__ = ["read_yaml_file", "read_yaml_text", "write_yaml"]

MAX_SIZE = 1_000_000
"""Characters of a text, also with every alias written out."""
MAX_DEPTH = 50
MAX_INTEGER = 2**63 - 1
"""What databases and tensors hold."""

TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = (None, "!", TAG + "str")
"""What may be written before a value: nothing, or that it is text."""
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
SCALARS = (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
)
NO_KEY = re.compile(r"(yes|no|on|off|y|n)$", re.IGNORECASE)
"""Plain words that other readers of YAML take for true or false: as keys they stand in quotes."""


class _PurePython(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """Events from a text, where PyYAML comes without libyaml."""

    def __init__(self, text: str):
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


_Parser = getattr(yaml.cyaml, "CParser", _PurePython) if yaml.__with_libyaml__ else _PurePython


class _Resolver(BaseResolver):
    """What kind of scalar a plain word is."""


for _kind, _pattern, _first in SCALARS:
    _Resolver.add_implicit_resolver(TAG + _kind, _pattern, _first)


class _Constructor(SafeConstructor):
    """Plain values from checked nodes."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Decimal, `0o` or `0x`; of at most 64 bits."""
        text = self.construct_scalar(node)
        value = int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) < 100 else MAX_INTEGER + 1
        if abs(value) > MAX_INTEGER:
            raise ConfigError(f"the number {excerpt(text)} {_place(node)} is too large: 64 bits are the limit")
        return value

    def construct_yaml_float(self, node: ScalarNode) -> float:
        """A finite number."""
        text = self.construct_scalar(node)
        value = float(text) if text.lstrip("+-.")[:1].isdigit() else float("nan")
        if value - value != 0:
            raise ConfigError(f"{excerpt(text)} {_place(node)} is not a finite number")
        return value


_Constructor.add_constructor(TAG + "int", _Constructor.construct_yaml_int)  # type: ignore[type-var]
_Constructor.add_constructor(TAG + "float", _Constructor.construct_yaml_float)  # type: ignore[type-var]


class _Composer(Composer):
    """Composes nodes while it counts what they would take."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """One node, checked; an alias counts as what it stands for."""
        event = self.peek_event()  # type: ignore[attr-defined]
        alias = isinstance(event, yaml.events.AliasEvent)
        if self.depth >= MAX_DEPTH:
            raise ConfigError(f"nested more than {MAX_DEPTH} deep (line {event.start_mark.line + 1})")
        if (tag := getattr(event, "tag", None)) not in PLAIN_TAGS:
            raise ConfigError(
                f"the tag {excerpt(tag)} (line {event.start_mark.line + 1}) is not allowed: plain values only"
            )
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if alias and id(node) not in self.sizes:
            raise ConfigError(f"the alias *{event.anchor} (line {event.start_mark.line + 1}) holds itself")
        if not alias:
            self.sizes[id(node)] = self._size(node)
        if self.sizes[id(node)] > MAX_SIZE:
            raise ConfigError(f"with its aliases written out it is larger than {MAX_SIZE:,} characters")
        return node

    def _size(self, node: Node) -> int:
        if isinstance(node, ScalarNode):
            if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in node.value):
                raise ConfigError(f"{excerpt(ascii(node.value))} {_place(node)} holds what is no character")
            return len(node.value) + 2
        parts = node.value if isinstance(node, SequenceNode) else [part for pair in node.value for part in pair]
        if isinstance(node, MappingNode):
            _check_keys(node)
        return 2 + sum(self.sizes[id(part)] for part in parts)


def _check_keys(node: MappingNode) -> None:
    """Every key is text or a whole number, and stands once."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == TAG + "merge":
            continue
        name = key.value if isinstance(key, ScalarNode) else "a list or mapping"
        if key.tag not in (TAG + "str", TAG + "int") or (not key.style and NO_KEY.match(name)):
            raise ConfigError(f"the key {excerpt(name)} {_place(key)} is not text: put it in quotes")
        line = key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{excerpt(name)} is given twice (lines {lines[name]} and {line})")
        lines[name] = line


def _place(node: Node) -> str:
    return f"(line {node.start_mark.line + 1})"


class _Loader(_Composer, _Parser, _Constructor, _Resolver):  # type: ignore[valid-type,misc]
    """Events of the parser to nodes to plain values."""

    def __init__(self, text: str):
        _Parser.__init__(self, text)
        _Composer.__init__(self)
        _Constructor.__init__(self)
        _Resolver.__init__(self)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what this reader, or one of YAML 1.1, would not read back as text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Every value is written out."""
        return True


_Dumper.add_implicit_resolver(TAG + "float", FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(TAG + "int", SCALARS[2][1], list("-+0123456789"))
_Dumper.add_implicit_resolver(TAG + "bool", NO_KEY, list("yYnNoO"))


def read_yaml_text(text: str, where: str = "") -> Any:
    """The plain value that a YAML text stands for.

    Args:
        text: one YAML document.
        where: the file or setting that it is from, for messages.

    Raises:
        ConfigError: it is no YAML, or what this reader refuses.

    Example:
        >>> read_yaml_text("{lr: 1e-3, at: 1:01, rounds: [1, 2]}")
        {'lr': 0.001, 'at': '1:01', 'rounds': [1, 2]}
    """
    try:
        if len(text) > MAX_SIZE:
            raise ConfigError(f"it is larger than {MAX_SIZE:,} characters")
        return _Loader(text).get_single_data()
    except ConfigError as error:
        raise error.under(where) from None
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where or 'this'} is not YAML: {what}{line}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where or 'this'} is not YAML: {error}") from None


def read_yaml_file(path: Path) -> Any:
    """The plain value in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds what this reader refuses.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_SIZE + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return read_yaml_text(text, str(path))


def write_yaml(value: Any) -> str:
    """Plain values as YAML that `read_yaml_text` and every other reader read back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
