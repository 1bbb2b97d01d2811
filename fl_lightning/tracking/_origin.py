"""Where a run came from: when, by which version and command, on which machine, and through which search."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fl_lightning.errors import ConfigError
from fl_lightning.tracking._pages import run_link
from fl_lightning.tracking._store import artifact_text, client, find_run

__all__ = ["made_by", "search_behind"]


def made_by(run_id: str) -> dict[str, str]:
    """What a run was made with and when, by what a reader calls it; only what is known.

    Raises:
        ConfigError: there is no such run.
    """
    store = client(only_read=True)
    run = find_run(store, run_id)
    tags = run.data.tags
    made: dict[str, Any] = {}
    with suppress(ValueError):
        made = dict(json.loads(artifact_text(store, run_id, "environment.json") or "{}"))
    begun = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "lightning", "mlflow", "optuna") if name in made)
    found = {
        "run": f"[{run_id}]({run_link(run)})",
        "begun": f"{begun:%Y-%m-%d %H:%M} UTC",
        "command": f"`{tags['fl.command']}`" if tags.get("fl.command") else "",
        "fl-lightning": f"{made.get('fl-lightning', '?')}, revision {tags.get('mlflow.source.git.commit', 'unknown')}",
        "made with": versions,
        "machine": ", ".join(str(made[name]) for name in ("device", "platform", "python") if made.get(name)),
        "configuration": tags.get("fl.config", ""),
    }
    return {name: value for name, value in found.items() if value}


def search_behind(run_id: str) -> dict[str, Any] | None:
    """What the search came to whose winner a run confirms: its outcome, with `link` and `run_name`; None where there is none.

    Raises:
        ConfigError: there is no such run.
    """
    store = client(only_read=True)
    run = find_run(store, run_id)
    parent = run.data.tags.get("mlflow.parentRunId")
    if not parent or run.data.tags.get("fl.kind") != "confirmation":
        return None
    with suppress(ConfigError, ValueError):
        study = find_run(store, parent)
        outcome = json.loads(artifact_text(store, parent, "search.json") or "null")
        if isinstance(outcome, dict):
            return outcome | {"link": run_link(study), "run_name": study.info.run_name}
    return None
