"""Ray, where one machine is not enough: the one place that looks for a cluster, or starts one for this process alone."""

import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from fl_lightning.errors import ConfigError
from fl_lightning.parallel._endings import settings as stores
from fl_lightning.paths import tracking_server

__all__ = ["connect", "in_task", "processors", "require", "tasks"]


def require() -> None:
    """Whether Ray is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("ray") is None:
        raise ConfigError("needs the package ray: pip install 'fl-lightning[ray]'")


def in_task() -> bool:
    """Whether this process is one that Ray has started."""
    ray: Any = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


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
            hint = (
                "" if os.environ.get("RAY_AUTH_MODE") else "; a cluster that asks for a token needs RAY_AUTH_MODE=token"
            )
            raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address}: {str(error).splitlines()[0]}{hint}") from None
    else:
        os.environ.setdefault("RAY_worker_niceness", "0")  # as eager as any other engine
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)), include_dashboard=False, **quiet)
    return ray


def processors() -> int:
    """How many processors the cluster has."""
    return int(connect().cluster_resources().get("CPU", 1))


@contextmanager
def tasks() -> Iterator[Callable[..., "Future[Any]"]]:
    """Gives a function that begins a call as a Ray task on one processor; those not finished in the end are cancelled.

    A call sees this process's settings: folder of the runs, database of the searches, tracking server. One whose process
    or machine dies is begun again.

    Raises:
        ConfigError: several machines, and a store that only one of them can reach.
    """
    ray = connect()
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    named = {"MLFLOW_TRACKING_URI": tracking_server(), "FL_LIGHTNING_STUDIES": os.environ.get("FL_LIGHTNING_STUDIES")}
    local = [name for name, place in named.items() if not place]
    if len(hosts) > 1 and local:
        raise ConfigError(
            f"the Ray cluster has {len(hosts)} machines, all must reach the stores: set {' and '.join(local)}"
        )
    settings = {name: value for name, value in os.environ.items() if name.startswith(("FL_LIGHTNING_", "MLFLOW_"))}
    settings |= stores()
    call = ray.remote(num_cpus=1)(_call)
    begun: list[Any] = []

    def submit(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        begun.append(call.remote(settings, function, arguments))
        future: Future[Any] = begun[-1].future()
        return future

    try:
        yield submit
    finally:
        for task in begun:
            ray.cancel(task, force=True)


def _call(settings: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ.update(settings)
    return function(*arguments)


def _knock(address: str) -> None:
    """See whether anybody listens at `host:port`; Ray itself would go on asking for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
