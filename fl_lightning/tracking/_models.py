"""Models of a run: logged in MLflow's format and as safetensors."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import mlflow.pytorch
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import infer_signature
from safetensors.torch import load_file, save_file

from fl_lightning.config import dump
from fl_lightning.federation import Federation

ROUNDS = "rounds"
"""Where a run keeps the models of single rounds."""


def kept_rounds(store: MlflowClient, run_id: str) -> dict[int, dict[str, torch.Tensor]]:
    """Weights of the global model by round, for the rounds that a run has kept."""
    files = sorted(file.path for file in store.list_artifacts(run_id, ROUNDS))
    return {int(Path(file).stem): load_file(store.download_artifacts(run_id, file)) for file in files}


@contextmanager
def active_run(run_id: str) -> Iterator[Run]:
    """The run as MLflow's active run, left RUNNING."""
    with mlflow.start_run(run_id=run_id) as run:
        yield run
    MlflowClient().update_run(run_id, status="RUNNING")


def log_model(
    store: MlflowClient,
    run_id: str,
    federation: Federation,
    theta_D: torch.Tensor,
    name: str,
    step: int,
    figures: Mapping[str, float],
) -> str:
    """Log a model in eval mode (MLflow's format) and its weights (safetensors); returns the model's URI.

    Args:
        store: client of the tracking store.
        run_id: the run that made the model.
        federation: knows the architecture, the data's shape and the device.
        theta_D: `[D]` the model.
        name: of the model in its run, and of the file with its weights.
        step: the round that the model is from.
        figures: become tags of the model.
    """
    network = federation.bench.flat.load_(theta_D).eval()
    example = federation.data.test.x[:2]
    with torch.inference_mode():
        scores = network(example)
    with active_run(run_id):
        info = mlflow.pytorch.log_model(
            network.cpu(),
            name=name,
            step=step,
            signature=infer_signature(example.cpu().numpy(), scores.cpu().numpy()),
            input_example=example.cpu().numpy(),
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            tags={key.replace("/", "."): str(value) for key, value in figures.items() if not key.startswith("time/")},
        )
    network.to(federation.bench.trainer.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.safetensors"
        save_weights(federation, network, path)
        store.log_artifact(run_id, str(path), "weights")
    return str(info.model_uri)


def save_weights(federation: Federation, network: torch.nn.Module, path: Path) -> None:
    """Save the weights as safetensors, with what is needed to build the network for them."""
    weights = {key: part.cpu().contiguous().clone() for key, part in network.state_dict().items()}
    about = {"config": dump(federation.experiment), "classes": str(federation.data.classes)}
    about["shape"] = ",".join(map(str, federation.data.shape))
    save_file(weights, path, metadata=about)
