"""All methods of the platform, each in its shipped settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fl_lightning.errors import ConfigError
from fl_lightning.registry import named_config, registry


def panel(slot: str, n_byzantine: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """All components of a slot in their shipped settings, told how many rows are malicious; the experiment's own first.

    Returns:
        Label -> the component, or why it cannot be had.
    """
    found: dict[str, Any] = {f"{label} (configured)": one for label, one in own.items()}
    for cls in registry(slot):
        settings = named_config(slot, cls.name) or {"name": cls.name}
        if any(field.name == "n_byzantine" for field in fields(cls)):
            settings = {**settings, "n_byzantine": n_byzantine}
        try:
            found[cls.name] = registry(slot).build(settings)
        except ConfigError as error:
            found[cls.name] = str(error)
    return found
