"""The report as that of an incident: intervals, trigger, replays, provenance; numbers by hand and against the run itself."""

import csv
import io
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import norm

from fl_lightning import runs
from fl_lightning.aggregators import Krum, Mean
from fl_lightning.analysis import Section, first_attacked, folded, page, picture, replayed, subject, table, text
from fl_lightning.analysis._curves import draw
from fl_lightning.analysis._replay import Replayed, ordered
from fl_lightning.analysis._summary import in_plain_words, provenance, summary, unseen
from fl_lightning.analysis._trigger import extent, trigger
from fl_lightning.config import load
from fl_lightning.metrics import wilson

NAME = "digits-mlp-model_replacement-vs-mean"


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (8993, 9020), (50, 50)])
def test_wilsons_interval_by_its_formula(successes: int, n: int):
    z = norm.ppf(0.975)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = wilson(p, n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= low < high <= 1
    with pytest.raises(ValueError, match=r"got 1\.1 of 5"):
        wilson(1.1, 5)


def test_a_page_escapes_leaves_out_what_is_empty_and_hands_out_files():
    hostile = '<img src=x onerror=alert(1)>" [x](javascript:alert(1)) [y](https://a.b/c)'
    figure = Figure(figsize=(1, 1))
    parts = (text(hostile), folded(hostile, table([hostile], [[hostile], [0.5], [None]])), picture(figure, hostile))
    shown = page(hostile, [Section("A", parts), Section("Nothing")])
    assert "<img src=x" not in shown
    assert 'href="javascript' not in shown
    assert '<a href="https://a.b/c">y</a>' in shown
    assert "Nothing" not in shown
    assert ">-</td>" in shown
    files = Section("One & two", parts).files()
    assert list(files) == ["one-two-1.csv", "one-two-2.svg"]
    assert list(csv.reader(io.StringIO(files["one-two-1.csv"]))) == [[hostile], [hostile], ["0.5"], [""]]
    assert files["one-two-2.svg"] == picture(figure, "").content  # the same bytes every time
    for words in ("prefers-color-scheme: dark", "@media print"):
        assert words in shown


def test_attacked_rounds_are_shaded():
    axes = draw({"attack/success": [(0, 0.1), (1, 0.2), (2, 0.9)]}, attacked=[1, 2]).axes[0]
    assert [patch.get_extents().width > 0 for patch in axes.patches] == [True]
    assert not draw({"attack/success": [(0, 0.1)]}).axes[0].patches


def test_the_place_of_a_trigger_in_words():
    assert extent(torch.zeros(4, 4)) == "no pixel changes"
    corner = torch.zeros(4, 4)
    corner[3, 0] = 0.5
    assert extent(corner) == "1 of 16 pixels change: rows 3 to 3 of 0 to 3, columns 0 to 0 of 0 to 3"


def test_the_winners_figure_on_unseen_seeds_stays_inside_its_bounds():
    confirmed = {"attack/success": {"mean": 0.99, "half": 0.03, "bounds": [0, 1], "n": 3}}
    assert unseen({"confirmed": confirmed}, "attack/success") == "0.990 (0.827 to 1.000)"
    few = {"attack/success": {"mean": 0.5, "half": float("nan"), "bounds": [0, 1], "n": 2}}
    assert unseen({"confirmed": few}, "attack/success") == "0.500 (too few seeds for an interval)"
    assert unseen({}, "attack/success") is None


def test_servers_in_order_what_is_configured_first():
    found = [Replayed("as configured", 0.9, 0.8), Replayed("nobody attacks", 0.9, 0.0)]
    found += [
        Replayed("a", 0.9, 0.5),
        Replayed("b", None, None, "why"),
        Replayed("c", 0.9, 0.1),
        Replayed("d", 0.8, 0.1),
    ]
    assert [row[0] for row in ordered(found)] == ["as configured", "nobody attacks", "c", "d", "a", "b"]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path):
    """Two of eight clients with a trigger, attacking in rounds 1 and 2 of 3, beside the attack-free twin."""
    import shutil

    from conftest import TINY

    folder = tmp_path_factory.mktemp("incident")
    shutil.copy(empty_database, folder / "mlflow.db")
    attack = {"name": "model_replacement", "boost": 4.0, "objective": {"name": "trigger", "size": 2, "offset": 0}}
    taking = {"name": "full", "malicious": 2, "schedule": {"name": "from_round", "round": 1}}
    own = {"attack": attack, "participation": taking, "partition": {"name": "iid", "clients": 8}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_LIGHTNING_RUNS", str(folder))
        experiment = load(TINY | own | {"evaluation": {"twin": True}, "tracking": {"register": "always"}})
        yield folder, runs.run(experiment, "tiny")


@pytest.fixture
def about(attacked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(attacked[0]))
    return subject(NAME)


def test_the_incident_in_plain_words(about, attacked):
    figures = attacked[1].metrics
    assert about.attacked_rounds == [1, 2]
    said = in_plain_words(about)
    assert said.startswith("In 2 of 3 rounds (1 to 2), 2 of 8 clients sent updates made by `model_replacement`")
    n = len(about.success_samples)
    low, high = wilson(figures["attack/success"], n)
    assert f"on {figures['attack/success']:.1%} of the {n:,} test samples" in said
    assert f"{low:.1%} to {high:.1%}" in said
    before = figures["global/accuracy"] + figures["impact/accuracy_drop"]
    assert f"right in {figures['global/accuracy']:.1%} of the cases, without the attack in {before:.1%}" in said
    shown = "".join(summary(about).parts)
    for words in ("boost 4", "rounds 1 to 2, counted from 0", "label 0", "8 of 8 clients take part"):
        assert words in shown
    origin = "".join(provenance(about).parts)
    for words in (attacked[1].run_id, "revision ", "torch ", " UTC"):
        assert words in origin


def test_the_trigger_says_size_place_and_label(about):
    shown = "".join(trigger(about).parts)
    assert "4 of 64 pixels change: rows 6 to 7 of 0 to 7, columns 6 to 7 of 0 to 7" in shown
    assert "shall be taken for class 0" in shown


def test_a_replay_of_what_is_configured_is_the_run_itself(about, attacked):
    """Two rounds from the first attacked one on, by the same server: the run's own end."""
    before = first_attacked(about)
    assert before is not None
    assert before.state.round == 1
    figures = attacked[1].metrics
    same = replayed(about, before, 2, "as configured")
    assert same.success == pytest.approx(figures["attack/success"], abs=1e-7)
    assert same.accuracy == pytest.approx(figures["global/accuracy"], abs=1e-7)
    assert same == replayed(
        about, before, 2, "as configured", aggregator=Mean()
    )  # and leaves no trace in what it began from
    honest = replayed(about, before, 2, "nobody", attack=None)
    twin = figures["global/accuracy"] + figures["impact/accuracy_drop"]
    assert honest.accuracy == pytest.approx(twin, abs=1e-7)
    impossible = replayed(about, before, 2, "krum", aggregator=Krum(n_byzantine=6))
    assert impossible.success is None
    assert "Krum needs C > 2f + 2" in str(impossible.why)
    assert first_attacked(about, seconds=-1.0) is None  # it takes too long to get there
