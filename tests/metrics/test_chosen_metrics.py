"""Figures that the user asks for."""

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.metrics import f1_score, roc_auc_score

from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation


def test_chosen_figures_are_reported(tiny: Callable[..., Any]):
    metrics = {"f1": "torchmetrics", "area": {"name": "torchmetrics", "metric": "AUROC"}}
    experiment = tiny(rounds=1, evaluation={"metrics": metrics}, attack="label_flip")
    federation = Federation(experiment)
    figures = federation.run().history[-1]
    test, theta_D = federation.goal.clean, federation.state.global_D
    scores = federation.bench.flat.scores(theta_D, test.x)
    assert figures["global/f1"] == pytest.approx(f1_score(test.y, scores.argmax(1), average="macro"), abs=1e-6)
    area = roc_auc_score(test.y, scores.softmax(1).double(), multi_class="ovr", average="macro")
    assert figures["global/area"] == pytest.approx(area, abs=1e-3)
    assert experiment.override({"rounds": 2}).evaluation == experiment.evaluation


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"metric": "F1Skore"}, r"evaluation.metrics.f1.metric: torchmetrics has no 'F1Skore'; did you mean 'F1Score'"),
        ({"metric": "F1Score", "args": {"averages": "macro"}}, r"evaluation.metrics.f1.args: .*averages"),
    ],
)
def test_what_cannot_be_built_is_refused(metric: dict[str, Any], message: str, tiny: Callable[..., Any]):
    with pytest.raises(ConfigError, match=message):
        tiny(evaluation={"metrics": {"f1": {"name": "torchmetrics", **metric}}})
