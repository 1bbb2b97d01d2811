"""Ray, where one machine is not enough: the one place that looks for a cluster, or starts one for this process alone."""

import logging
import math
import os
import socket
from importlib.util import find_spec
from typing import Any

from fl_lightning.registry import ConfigError

__all__ = ["connect", "require"]


def require() -> None:
    """Whether Ray is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("ray") is None:
        raise ConfigError("needs the package ray: pip install 'fl-lightning[ray]'")


def connect(cpus: float = 1) -> Any:
    """The module `ray`, connected to the cluster that `RAY_ADDRESS` names, or else to one of this process alone.

    A cluster of its own is quiet (no dashboard, no usage statistics) and ends with the process. A connection that the
    program has made before is used as it is.

    Args:
        cpus: processors that will be asked for at once; a cluster of its own offers at least these.

    Raises:
        ConfigError: Ray is not installed, or nobody answers at `RAY_ADDRESS`.
    """
    require()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without a GPU of their own must not see any: this is what Ray does anyway, and it says so in every process.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address}: {str(error).splitlines()[0]}") from None
    else:
        os.environ.setdefault("RAY_worker_niceness", "0")  # as eager as any other engine
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)), include_dashboard=False, **quiet)
    return ray


def _knock(address: str) -> None:
    """See whether anybody listens at `host:port`; Ray itself would go on asking for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
