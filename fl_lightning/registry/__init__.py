"""What a component is, and how a configuration names one.

A component *is* its configuration: a frozen dataclass whose fields are the hyper-parameters. Every slot of an
experiment (`aggregator`, `attack`, ...) has one `Registry`, filled by explicit imports; installed packages add
their own through the entry-point group `fl_lightning.<slot>`, and `module:Class` names any importable class.
"""

from fl_lightning.errors import ConfigError, errors_under, suggest
from fl_lightning.registry._components import Component, component, name_of
from fl_lightning.registry._parts import foreign, parts, refuse_unreachable
from fl_lightning.registry._plugins import PluginError, distribution_of, import_class, no_imports, plugins
from fl_lightning.registry._registry import NAME, SLOT_KEY, SLOTS, Registry, Slot, named_config, registry
from fl_lightning.registry._settings import (
    STRICT,
    Label,
    Settings,
    flatten,
    number_check,
    plain_fields,
    refuse_truth_values,
    summary,
    to_plain,
)
from fl_lightning.registry._tunable import Choice, Tunable, as_span, tunables

__all__ = [
    "NAME",
    "SLOTS",
    "SLOT_KEY",
    "STRICT",
    "Choice",
    "Component",
    "ConfigError",
    "Label",
    "PluginError",
    "Registry",
    "Settings",
    "Slot",
    "Tunable",
    "as_span",
    "component",
    "distribution_of",
    "errors_under",
    "flatten",
    "foreign",
    "import_class",
    "name_of",
    "named_config",
    "no_imports",
    "number_check",
    "parts",
    "plain_fields",
    "plugins",
    "refuse_truth_values",
    "refuse_unreachable",
    "registry",
    "suggest",
    "summary",
    "to_plain",
    "tunables",
]
