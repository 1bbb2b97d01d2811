"""Models of a run: logged in MLflow's format and as safetensors."""

import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, infer_signature
from safetensors.torch import load_file, save_file

from fl_lightning.config import dump
from fl_lightning.federation import Federation
from fl_lightning.tracking._example import arrays, described

ROUNDS = "rounds"
"""Where a run keeps the models of single rounds."""


AUTOLOGGING = "mlflow.pytorch._lightning_autolog"
"""A private module of MLflow, which `mlflow.pytorch` imports: there is no public way not to."""


def mlflow_pytorch() -> ModuleType:
    """`mlflow.pytorch` without its automatic logging of `pytorch_lightning`: a second Lightning, which takes seconds.

    Who asks MLflow for automatic logging gets it all the same: then MLflow imports it itself.
    """
    if "mlflow.pytorch" in sys.modules or AUTOLOGGING in sys.modules:
        return import_module("mlflow.pytorch")
    sys.modules[AUTOLOGGING] = None  # type: ignore[assignment] # what Python takes for "cannot be imported"
    try:
        module = import_module("mlflow.pytorch")
    finally:
        del sys.modules[AUTOLOGGING]

    def missing(name: str) -> Any:
        if name == "MlflowModelCheckpointCallback":
            return getattr(import_module(AUTOLOGGING), name)
        raise AttributeError(f"module 'mlflow.pytorch' has no attribute {name!r}")

    vars(module).setdefault("__getattr__", missing)
    return module


def kept_rounds(store: MlflowClient, run_id: str) -> dict[int, dict[str, torch.Tensor]]:
    """Weights of the global model by round, for the rounds that a run has kept."""
    files = sorted(file.path for file in store.list_artifacts(run_id, ROUNDS))
    with tempfile.TemporaryDirectory() as folder:
        return {int(Path(file).stem): load_file(store.download_artifacts(run_id, file, folder)) for file in files}


class Snapshot(NamedTuple):
    """A global model of a run.

    Attributes:
        name: of the model in its run, and of the file with its weights.
        theta_D: `[D]` the model.
        step: the round that the model is from.
        figures: become tags of the model.
    """

    name: str
    theta_D: torch.Tensor
    step: int
    figures: Mapping[str, float]


def log_model(store: MlflowClient, run_id: str, federation: Federation, model: Snapshot) -> str:
    """Log a model in eval mode (MLflow's format) and its weights (safetensors); returns the model's URI.

    Args:
        store: client of the tracking store.
        run_id: the run that made the model.
        federation: knows the architecture, the data's shape and the device.
        model: what is logged.
    """
    name, theta_D, step, figures = model
    if known := _logged(store, run_id, name):
        return known
    network = federation.bench.flat.load_(theta_D).eval()
    example = federation.data.test.x[:2]
    with torch.inference_mode():
        scores = network(example)
    tags = {key.replace("/", "."): str(value) for key, value in figures.items() if not key.startswith("time/")}
    with tempfile.TemporaryDirectory() as folder:
        weights, saved = Path(folder) / f"{name}.safetensors", Path(folder) / "model"
        # Not mlflow.pytorch.log_model: that goes through MLflow's current run, server and experiment, which are the user's.
        logged = store.create_logged_model(store.get_run(run_id).info.experiment_id, name, run_id, tags)
        about = {
            "mlflow_model": Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
            "signature": infer_signature(arrays(example), scores.cpu().numpy()),
            "pip_requirements": [f"torch=={torch.__version__.split('+')[0]}"],
        }
        _save(network.cpu(), saved, arrays(example), about)
        store.log_model_artifacts(logged.model_id, str(saved))
        store.finalize_logged_model(logged.model_id, "READY")
        store.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        _link_figures(store, run_id, logged.model_id, step, figures)
        save_weights(federation, network, weights)
        store.log_artifact(run_id, str(weights), "weights")
    network.to(federation.bench.trainer.device)
    return f"models:/{logged.model_id}"


def _save(network: torch.nn.Module, folder: Path, example: Any, about: dict[str, Any]) -> None:
    """Write a model in MLflow's format: traced, without any pickle; as it is, where it cannot be traced.

    MLflow traces no inputs by name, and torch not every module, such as one that packs sequences.
    """
    save = mlflow_pytorch().save_model
    if not isinstance(example, Mapping):
        try:
            with warnings.catch_warnings():  # torch says this of parts that share memory, such as a frozen backbone's
                warnings.filterwarnings("ignore", message="No complete tensor found in the group")
                save(network, str(folder), serialization_format="pt2", input_example=example, **about)
            return
        except Exception as error:  # whatever torch.export raises for a foreign module
            shutil.rmtree(folder, ignore_errors=True)
            reason = (str(error).splitlines() or [""])[0][:200]
            logging.getLogger("fl_lightning").warning(
                "MLflow's copy of the model is pickled, it cannot be traced: %s", reason
            )
    save(network, str(folder), serialization_format="pickle", **about)


def _logged(store: MlflowClient, run_id: str, name: str) -> str | None:
    """The model of that name which the run has logged, if it was killed after that; one that is half there is removed."""
    of_run = f"name = '{name}' AND source_run_id = '{run_id}'"
    complete = None
    for model in store.search_logged_models([store.get_run(run_id).info.experiment_id], of_run):
        if model.status == LoggedModelStatus.READY:
            complete = f"models:/{model.model_id}"
        else:
            store.delete_logged_model(model.model_id)
    return complete


def _link_figures(store: MlflowClient, run_id: str, model_id: str, step: int, figures: Mapping[str, float]) -> None:
    """Show the run's figures of a round beside its model; those of a twin are the model's tags only."""
    points = [point for name in figures for point in store.get_metric_history(run_id, name)]
    linked = [
        Metric(point.key, point.value, point.timestamp, step, model_id=model_id, run_id=run_id)
        for point in points
        if point.step == step and point.value == figures[point.key]
    ]
    store.log_batch(run_id, metrics=linked[:900])


def save_weights(federation: Federation, network: torch.nn.Module, path: Path) -> None:
    """Save the weights as safetensors, with what is needed to build the network for them."""
    weights = {key: part.cpu().contiguous().clone() for key, part in network.state_dict().items()}
    about = {"config": dump(federation.experiment), "classes": str(federation.data.classes)}
    save_file(weights, path, metadata=about | described(federation.data.train.x))
