"""Tables, figures and citations of finished runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

import fl_lightning
from fl_lightning import cli, runs
from fl_lightning._matrix import Matrix, run_matrix
from fl_lightning.aggregators import Aggregate, Aggregator
from fl_lightning.errors import ConfigError
from fl_lightning.paths import CONFIGS
from fl_lightning.references import bibtex, cited
from fl_lightning.registry import SLOTS, parts, registry

SMALL = {
    "data": {"name": "digits", "train_samples": 100, "test_samples": 50},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 5},
    "model": "linear",
    "participation": {"name": "full", "malicious": 1},
    "tracking": {"models": False},
}


def test_figures_of_runs_and_of_a_matrix(store_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    matrix = Matrix(
        base=SMALL, attacks={"sign_flip": "sign_flip"}, servers={"krum": {"aggregator": "krum"}}, seeds=(3, 4), jobs=1
    )
    outcome = run_matrix(matrix, "small")
    table = outcome.frame()
    assert list(table.columns) == ["run", "experiment", "seed", "round", "metric", "value"]
    assert table["run"].nunique() == 4
    assert set(table["experiment"]) == {"sign_flip | krum", "no attack | krum"}
    for cell, done in outcome.campaign.outcomes.items():
        mine = table[
            (table["experiment"] == cell.name) & (table["seed"] == cell.seed) & (table["metric"] == "global/accuracy")
        ]
        assert mine["round"].tolist() == [0, 1]
        assert mine["value"].iloc[-1] == done.metrics["global/accuracy"]

    opened = fl_lightning.open(outcome.campaign.run_id)
    assert opened.kind == "campaign"
    pd.testing.assert_frame_equal(opened.frame(), table)
    wide = opened.last(["global/accuracy"])["sign_flip | krum"]["global/accuracy"]
    assert wide == outcome.cell("sign_flip", "krum", "global/accuracy")
    one = fl_lightning.open(table["run"].iloc[0])
    assert set(one.frame()["run"]) == {table["run"].iloc[0]}
    with pytest.raises(ConfigError, match="no run 'nothing'"):
        fl_lightning.open("nothing")

    files = {path.suffix: path for path in outcome.write(tmp_path / "out", "small")}
    assert len(pd.read_csv(files[".csv"])) == len(table)
    text = files[".tex"].read_text()
    assert r"attack/success & sign\_flip & accuracy under attack & accuracy without attack \\" in text
    assert str(outcome.cell("no attack", "krum", "global/accuracy").mean)[:5] in text
    assert files[".pdf"].read_bytes().startswith(b"%PDF")
    keys = re.findall(r"^@\w+\{(\S+),", files[".bib"].read_text(), re.M)
    assert keys == ["alpaydin1998optical", "blanchard2017machine", "li2019rsa", "wei2021covert"]
    with pytest.raises(ConfigError, match=r"written as .pdf, .png, .svg, .csv"):
        outcome.save(tmp_path / "out" / "small.docx")
    assert "<td>krum †</td>" in outcome._repr_html_()
    assert "sign_flip | krum" in opened._repr_html_()
    assert opened.save(tmp_path / "curves.png").stat().st_size > 5000

    assert cli.main(["cite", outcome.campaign.run_id]) == 0
    assert capsys.readouterr().out == outcome.bibtex()
    assert cli.main(["cite", "digits", "aggregator=krum", "attack=sign_flip", "model=linear"]) == 0
    cite = capsys.readouterr().out
    assert "blanchard2017machine" in cite
    assert cli.main(["cite", "no_such_thing"]) == 2


def test_a_run_of_several_seeds(store_folder: Path, tiny: Callable[..., Any]):
    outcome = runs.run(fl_lightning.load(SMALL | {"seeds": [1, 2], "rounds": 1}), "mine")
    table = outcome.frame()
    assert set(table["seed"]) == {1, 2}
    assert set(table["experiment"]) == {"mine"}
    assert table["run"].nunique() == 2
    assert outcome.latex("Mine", "tab:mine").count("mine") == 2
    assert "alpaydin1998optical" in outcome.bibtex()


def test_every_method_cites_and_every_key_has_an_entry():
    text = (CONFIGS.parent / "references.bib").read_text()
    keys = re.findall(r"^@\w+\{([^,\s]+),", text, re.M)
    assert keys == sorted(set(keys))
    for entry in re.split(r"^(?=@)", text, flags=re.M)[1:]:
        assert all(re.search(rf"^ +{field} = ", entry, re.M) for field in ("author", "title", "year")), entry
    classes = [cls for slot in SLOTS for cls in registry(slot)]
    assert not [key for key, entry in cited(classes).items() if entry is None]
    silent = [
        cls.__name__
        for slot in ("attack", "defense", "aggregator", "callback")
        for cls in registry(slot)
        if not cls.cites
    ]
    assert not silent


def test_a_missing_entry_is_told_and_all_parts_are_seen():
    class Ours(Aggregator):
        """Cites what no file has."""

        name: ClassVar[str] = "ours"
        cites: ClassVar[tuple[str, ...]] = ("nobody2030nothing",)

        def aggregate(self, updates_CD: Any, weights_C: Any) -> Aggregate:
            raise NotImplementedError

    assert bibtex([Ours]) == "% no entry for nobody2030nothing\n"
    experiment = fl_lightning.load(
        SMALL
        | {"client": {"callbacks": {"wbc": "fl_wbc"}}, "defenses": {"bound": "norm_bound"}, "attack": "label_flip"}
    )
    assert {"sun2021flwbc", "sun2019can", "biggio2012poisoning"} <= set(cited(parts(experiment)))
