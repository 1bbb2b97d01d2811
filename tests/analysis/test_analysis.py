"""The report about a poisoned model: its numbers by hand, and the page as a whole."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fl_lightning import runs, tracking
from fl_lightning.aggregators import Krum, Mean
from fl_lightning.analysis import (
    SECTIONS,
    Section,
    attributions,
    confusion_matrix,
    densities,
    healing,
    page,
    subject,
    success_by_class,
    text,
    typical_inputs,
)
from fl_lightning.analysis._confusion import confusion, success
from fl_lightning.analysis._curves import history
from fl_lightning.analysis._judges import judged_by, next_round
from fl_lightning.analysis._line import line
from fl_lightning.analysis._panel import panel
from fl_lightning.analysis._summary import summary
from fl_lightning.analysis._weights import weights
from fl_lightning.cli import main
from fl_lightning.defenses import NormBound, Pdrr, ServerContext, StatisticalCheck
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork
from fl_lightning.randomness import generator

NAME = "digits-mlp-model_replacement-vs-mean"


def test_confusion_by_hand():
    predicted, truth = torch.tensor([1, 1, 0, 2, 2]), torch.tensor([1, 0, 0, 2, 1])
    assert confusion_matrix(predicted, truth, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_success_by_class_by_hand():
    predicted, truth = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 1, 2])
    wished = torch.tensor([0, 2, 0, 2])
    targeted = success_by_class(predicted, wished, truth, 3)
    assert targeted[0].isnan()
    assert targeted[1:].tolist() == pytest.approx([1 / 3, 1.0])
    assert success_by_class(predicted, None, truth, 3)[1:].tolist() == pytest.approx([2 / 3, 0.0])


def test_densities_share_bins_and_have_area_one():
    edges, found = densities({"a": torch.tensor([0.0, 0.0, 0.0, 1.0]), "b": torch.tensor([4.0])}, bins=4)
    assert edges.tolist() == [0, 1, 2, 3, 4]
    assert found["a"].tolist() == [0.75, 0.25, 0, 0]
    assert found["b"].tolist() == [0, 0, 0, 1]
    _, equal = densities({"a": torch.ones(3)}, bins=2)
    assert float(equal["a"].sum() * 0.5) == 1.0


def test_history_is_in_order_and_a_round_counts_once():
    logged = {"attack/success": [(1, 0.5), (0, 0.1), (1, 0.7)]}
    assert history(lambda name: logged.get(name, [])) == {"attack/success": [(0, 0.1), (1, 0.7)]}


def test_a_page_escapes_what_it_is_told():
    shown = page("a < b", [Section("One & two", (text("<script> `x`"),))])
    assert "<script>" not in shown
    assert "<h1>a &lt; b</h1>" in shown
    assert '<section id="one-two"><h2>One &amp; two</h2><p>&lt;script&gt; <code>x</code></p></section>' in shown


def linear() -> FlatNetwork:
    """Two scores of four pixels: the first is that of pixel 0, the second that of pixel 3."""
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[5.0, 0, 0, 0], [0, 0, 0, 5.0]])
    layer.bias.data.zero_()
    return FlatNetwork(nn.Sequential(nn.Flatten(), layer), "cross_entropy")


def test_typical_inputs_of_a_linear_model_light_the_pixel_of_their_class():
    flat, start = linear(), torch.full((1, 2, 2), 0.5)
    found = typical_inputs(flat, flat.vector(), start, 2, (0.0, 1.0), weight=0.01)
    assert found.shape == (2, 1, 2, 2)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[0, 0, 0, 0] > 0.9
    assert found[0, 0, 1, 1] < 0.1
    assert found[1, 0, 1, 1] > 0.9
    assert found[1, 0, 0, 0] < 0.1


def test_attributions_of_a_linear_model_are_weight_times_difference(monkeypatch):
    flat, baseline = linear(), torch.full((1, 2, 2), 0.2)
    x, classes = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
    found = attributions(flat, flat.vector(), x, classes, baseline)
    assert torch.allclose(
        found.view(3, 4), flat.split(flat.vector())["1.weight"][classes] * (x.view(3, 4) - 0.2), atol=1e-5
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install fl-lightning\[analysis\]"):
        attributions(flat, flat.vector(), x, classes, baseline)


def context(rows: int) -> ServerContext:
    nothing = torch.zeros(2)
    return ServerContext(
        round=1, global_D=nothing, previous_D=nothing, aggregator=Mean(), weights_C=torch.ones(rows), validation=None,
        predict=lambda theta, x: x, losses=lambda theta, samples: samples.x, gradient=lambda theta, samples: theta,
        generator=lambda purpose: generator(0, purpose),
    )  # fmt: skip


def test_judgement_by_hand():
    updates = torch.tensor([[1.0, 0.0]] * 4 + [[-3.0, 0.0]])
    poisoned = torch.tensor([False] * 4 + [True])
    said = judged_by(StatisticalCheck(), updates, poisoned, context(5))
    # Without the row itself the others sum to 0 for a benign row (cosine 0 passes) and to +4 for the malicious one.
    assert (said["flagged"], said["caught"], said["note"]) == (1, 1, "")
    assert said["defense/roc_auc"] == 1
    bounded = judged_by(NormBound(max_norm=1.5), updates, poisoned, context(5))
    # It clips, and flags nobody by design: there is no alarm that it could miss.
    assert not {"flagged", "caught", "defense/missed_alarm_rate", "defense/false_alarm_rate"} & set(bounded)
    assert bounded["defense/roc_auc"] == 1
    assert bounded["note"] == "changes updates: mean norm of the malicious ones 3 → 1.5"
    assert "works with the median" in judged_by(Pdrr(), updates.repeat(4, 1), poisoned.repeat(4), context(20))["note"]


def test_the_panel_is_complete_and_told_the_number_of_attackers():
    found = panel("aggregator", 3, {"krum": Krum(n_byzantine=1)})
    assert found["krum (configured)"].n_byzantine == 1
    assert {found[name].n_byzantine for name in ("krum", "multi_krum", "bulyan", "trimmed_mean")} == {3}
    assert set(found) > {"mean", "median", "geometric_median"}


@pytest.fixture
def outcome(tiny, store_folder) -> runs.Outcome:
    attack = {"name": "model_replacement", "boost": 3.0, "objective": {"name": "trigger", "size": 2, "offset": 0}}
    tracked = {"register": "best", "keep_rounds": [0, 2, 7]}
    return runs.run(tiny(attack=attack, evaluation={"twin": True}, tracking=tracked), "tiny")


def test_the_models_of_chosen_rounds_are_kept(outcome):
    store = tracking.client()
    kept = tracking.kept_rounds(store, outcome.run_id)
    assert list(kept) == [0, 2]  # round 7 is never reached
    final = load_file(store.download_artifacts(outcome.run_id, "weights/final.safetensors"))
    assert all(torch.equal(kept[2][name], final[name]) for name in final)
    assert not all(torch.equal(kept[0][name], final[name]) for name in final)


def few(slot: str, n_byzantine: int, own: dict[str, object]) -> dict[str, object]:
    """A panel of two."""
    chosen = {"aggregator": ("bulyan", "median"), "defense": ("statistical_check", "norm_bound")}[slot]
    return {name: one for name, one in panel(slot, n_byzantine, own).items() if name in (*chosen, *own)}


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports try four methods of the platform in place of sixty."""
    for module in ("_judges", "_replay"):
        monkeypatch.setattr(f"fl_lightning.analysis.{module}.panel", few)


@pytest.mark.usefixtures("_few")
def test_a_report_is_one_page_that_asks_for_nothing(outcome, tmp_path: Path, capsys):
    file = tmp_path / "report.html"
    assert main(["models", "analyze", NAME, "--out", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    shown = file.read_text()
    assert len(shown) < 10_000_000
    assert not re.search(r"https?:|<script|<link|@import|url\(", re.sub(r'<a href="[^"]*"', "", shown))
    assert set(re.findall(r'src="([^,"]*),', shown)) == {"data:image/svg+xml;base64"}
    assert "default-src 'none'" in shown
    titles = re.findall(r"<h2>(.*?)</h2>", shown)
    assert len(set(titles)) == len(titles) == len(SECTIONS)
    assert set(re.findall(r'<a href="#(.*?)"', shown)) == set(re.findall(r'<section id="(.*?)"', shown))
    pictures = shown.count("<img ")
    beside = tmp_path / "report-files"
    assert len(list(beside.glob("*.svg"))) == pictures == 11
    assert (beside / "what-would-have-stopped-it-1.csv").read_text().startswith("server,attack success,accuracy")
    artifacts = {file.path for file in tracking.client().list_artifacts(outcome.run_id, "analysis")}
    assert artifacts == {f"analysis/{path.name}" for path in beside.iterdir()}
    for words in (
        "Do not deploy it",
        "1 of 5 clients are malicious",
        "Compared with digits-mlp-clean/1",
        "statistical_check",
        "bulyan",
    ):
        assert words in shown
    kept = tracking.client().download_artifacts(outcome.run_id, "analysis.html")
    assert Path(kept).read_text() == shown

    for words, error in {
        (NAME[:-1],): f"no registered model '{NAME[:-1]}'; did you mean '{NAME}'",
        (f"{NAME}@clean",): f"digits-mlp-clean/1 is not poisoned; analyze {NAME}/1",
        (NAME, "--against", f"{NAME}/1"): "cannot be compared with itself",
        (NAME, "--out", str(tmp_path)): "it is a folder",
        (NAME, "--out", str(tmp_path / "no" / "report.html")): "there is no such folder",
        (NAME, NAME): "usage: fl-lightning models analyze NAME",
    }.items():
        assert main(["models", "analyze", *words]) == 2
        assert error in capsys.readouterr().err


def test_the_subject_is_the_model_that_was_measured(outcome):
    about = subject(NAME)
    goal = about.federation.goal
    assert about.success_rate(about.poisoned_D) == pytest.approx(outcome.metrics["attack/success"], abs=1e-6)
    assert about.flat.accuracy(about.poisoned_D, goal.clean) == pytest.approx(
        outcome.metrics["global/accuracy"], abs=1e-6
    )
    assert about.clean_D is not None
    assert float((about.poisoned_D - about.clean_D).norm()) == pytest.approx(outcome.metrics["impact/aep"], rel=1e-4)
    found = healing(about, 2)
    assert len(found) == 3
    assert found[0]["attack/success"] == pytest.approx(outcome.metrics["attack/success"], abs=1e-6)
    assert found[1] != found[0]
    judged = next_round(about)
    assert judged is not None
    federation, sent = judged
    assert sent.poisoned_C.sum() == 1
    assert sent.updates_CD[sent.poisoned_C].norm() > sent.updates_CD[~sent.poisoned_C].norm(dim=1).max()
    assert federation.state.round == 4
    assert about.federation.state.round == 0


def test_what_needs_a_clean_model_says_so_where_there_is_none(tiny, store_folder):
    runs.run(tiny(attack={"name": "gaussian", "std": 1.0}, tracking={"register": "best"}), "tiny")
    about = subject("digits-mlp-gaussian-vs-mean")
    assert about.clean is None
    shown = page("", [part(about) for part in (summary, confusion, success, weights, line)])
    for words in (
        "no clean model to compare with",
        "Share of errors, by right class",
        "Without a clean model there are no distances",
        "Without a clean model there is no line",
    ):
        assert words in shown
