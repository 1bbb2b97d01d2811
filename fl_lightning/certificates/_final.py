"""The final model of a tracked run, as the vector of a federation."""

import tempfile

from safetensors.torch import load_file
from torch import Tensor

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.runs import one_seed


def final_model(federation: Federation, run_id: str) -> Tensor:
    """`[D]` what the run ended with.

    Args:
        federation: of the same architecture; its network holds the model afterwards.
        run_id: MLflow run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = tracking.client().download_artifacts(run_id, "weights/final.safetensors", folder)
        federation.bench.flat.network.load_state_dict(load_file(path))
    return federation.bench.flat.vector()


def certifiable(experiment: Experiment) -> Experiment:
    """The experiment with its one seed, its model kept and none registered.

    Raises:
        ConfigError: it has several seeds; a certificate is that of one model, or of one ensemble.
    """
    if experiment.seeds:
        raise ConfigError("a certificate is that of one seed: set seeds to [] and seed to it", "seeds")
    return one_seed(experiment.override({"tracking.models": True, "tracking.register": "never"}), experiment.seed)


def check_classification(federation: Federation) -> None:
    """Refuse what has no labels to certify.

    Raises:
        ConfigError: the data is for regression.
    """
    if federation.data.task != "classification":
        raise ConfigError(f"labels are certified, the data is for {federation.data.task}", "data")
