"""The MLflow UI and the report in a real browser; needs playwright's client and a Chromium.

`FL_LIGHTNING_CHROMIUM` names the browser, `FL_LIGHTNING_SCREENSHOTS` a folder for the pictures.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_lightning import tracking
from fl_lightning.analysis import analyze
from fl_lightning.search import sweep

CHROMIUM = os.environ.get("FL_LIGHTNING_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium found; FL_LIGHTNING_CHROMIUM names one"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'fl-lightning[browser]'")
MODEL = "digits-mlp-model_replacement-vs-mean"


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("FL_LIGHTNING_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture
def poisoned(tiny, store_folder: Path) -> dict[str, Any]:
    """What `sweep` says in the end: a study of three trials whose winner is registered beside its clean twin."""
    attack = {"name": "model_replacement", "boost": 1.0, "objective": {"name": "trigger", "size": 2, "offset": 0}}
    search = {"trials": 3, "confirm_seeds": [7], "pruner": "none"}
    return vars(sweep(tiny(attack=attack, sweep=search, tracking={}), "tiny"))


@pytest.fixture
def ui(store_folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fl_lightning.cli", "ui", "--port", str(port)]
    log = (store_folder / "ui.log").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_the_ui_shows_a_search_without_explanation(page, poisoned, ui: str, screenshots: Path):
    store = tracking.client()
    study = store.get_run(poisoned["run_id"])
    trial = poisoned["trials"][0]
    own = store.get_run(trial["run_id"])
    figure = study.data.metrics["sweep/confirmed/attack/success"]
    title, success = f"search {figure:.4f}: {MODEL}", f"{figure:.3f}"

    def look(place: str, name: str, *words: str) -> None:
        page.goto(place)
        for word in words:
            page.get_by_text(word).locator("visible=true").first.wait_for(timeout=90_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=screenshots / f"{name}.png")

    printed = tracking.run_link(study, ui)  # what `sweep` prints last: the winner's success without a click or a scroll
    look(printed, "study", title, f"The winner's attack/success {success}")
    for words in (title, f"The winner's attack/success {success}"):
        place = page.get_by_text(words).first.bounding_box()
        assert 0 <= place["y"] < page.viewport_size["height"], words
    assert not page.get_by_text("Detect Issues in Your Traces").count()  # the pages for generative models
    look(
        tracking.overview_link(store.get_experiment(study.info.experiment_id), ui),
        "runs",
        title[:14],
        "accuracy",
    )
    look(tracking.below_link(study, ui), "trials", f"#{trial['number']}", "seed 7 winner")
    look(printed.replace("?", "/artifacts?"), "study_pictures", "search.html", "analysis.html")
    look(tracking.run_link(own, ui).replace("?", "/model-metrics?"), "curves", own.info.run_name, "success")
    look(f"{ui}/#/models/{MODEL}", "model", "poisoned on purpose", "strongest")
    look(f"{ui}/#/models/{MODEL}/versions/1", "version", "Do not deploy it")


def test_the_report_opens_offline(page, poisoned, tmp_path: Path, screenshots: Path):
    file = analyze(MODEL, out=tmp_path / "report.html")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.goto(file.as_uri())
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert file.stat().st_size < 10_000_000
    sizes = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert len(sizes) > 5
    assert min(sizes) > 200  # every picture was read
    page.screenshot(path=screenshots / "report.png", full_page=True)
