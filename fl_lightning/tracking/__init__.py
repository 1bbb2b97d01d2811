"""MLflow: runs, metrics, artifacts and the model registry.

The embedded store is `sqlite:///mlruns/mlflow.db` with artifacts beside it; `MLFLOW_TRACKING_URI` names any server.
"""

from fl_lightning.tracking import _settings as _settings  # before MLflow is imported

# isort: split
from fl_lightning.tracking._embedded import StoreError
from fl_lightning.tracking._environment import environment, git_revision
from fl_lightning.tracking._models import kept_rounds
from fl_lightning.tracking._registered import (
    Registered,
    card,
    compare,
    export,
    find,
    register,
    registered_models,
    threat_model,
)
from fl_lightning.tracking._store import (
    children,
    client,
    create_run,
    end_children,
    end_run,
    ended_as_it_is,
    experiment_id,
    find_run,
    find_tagged,
    finished,
    history,
    is_there,
    last_step,
    log_picture,
    log_summary,
    named_children,
    nested,
    opened_uri,
    recorded_config,
    recorded_environment,
    registered_name,
    reopen,
    run_name,
    tracking_uri,
)
from fl_lightning.tracking._tracker import Tracker, TrackingGoneError

__all__ = [
    "Registered",
    "StoreError",
    "Tracker",
    "TrackingGoneError",
    "card",
    "children",
    "client",
    "compare",
    "create_run",
    "end_children",
    "end_run",
    "ended_as_it_is",
    "environment",
    "experiment_id",
    "export",
    "find",
    "find_run",
    "find_tagged",
    "finished",
    "git_revision",
    "history",
    "is_there",
    "kept_rounds",
    "last_step",
    "log_picture",
    "log_summary",
    "named_children",
    "nested",
    "opened_uri",
    "recorded_config",
    "recorded_environment",
    "register",
    "registered_models",
    "registered_name",
    "reopen",
    "run_name",
    "threat_model",
    "tracking_uri",
]
