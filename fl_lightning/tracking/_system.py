"""The load of the machine beside the figures of a run, by MLflow's own monitor."""

from importlib.util import find_spec
from typing import Any

from mlflow import MlflowClient

from fl_lightning.errors import ConfigError

__all__ = ["Load", "check_system"]

SECONDS = 5
"""Between two looks at the machine; a run that is over before the first one has no such figures."""


def check_system(wanted: bool) -> None:
    """Raise ConfigError where the load of the machine is to be kept and psutil is not installed."""
    if wanted and find_spec("psutil") is None:
        raise ConfigError("needs psutil: pip install 'fl-lightning[system]'", "tracking.system")


class Load:
    """Logs `system/*` every few seconds: processors, memory, disk, network, GPU.

    Args:
        store: client of the tracking store.
        run_id: the run that the figures belong to.

    """

    def __init__(self, store: MlflowClient, run_id: str):
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = SystemMetricsMonitor  # untyped
        self.monitor = monitor(run_id, SECONDS, resume_logging=True, tracking_uri=store.tracking_uri)
        self.running = False

    def start(self) -> None:
        """Begin to log."""
        self.monitor.start()
        self.running = True

    def stop(self) -> None:
        """Log what is left, and end; a second call does nothing."""
        if self.running:
            self.running = False
            self.monitor.finish()
