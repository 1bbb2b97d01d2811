"""The documentation says what is true: tables follow from the registry, citations exist, code blocks run."""

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from fl_lightning.cli import main, parser
from fl_lightning.config import load
from fl_lightning.metrics import GLOSSARY, meaning
from fl_lightning.registry import SLOTS, registry

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "methods" and path.stem != "beyond"),
]
SLOW = {"docs/tracking.md"}
"""Pages whose Python takes more than a few seconds."""
BIB = (ROOT / "fl_lightning" / "references.bib").read_text()


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "console")).splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ fl-lightning")]
    return [words[1:] for words in found]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_table_of_the_readme_is_what_the_registry_says():
    text = (ROOT / "README.md").read_text()
    assert load_generator().with_slot_table(text) == text, "run: python docs/generate.py"


def test_the_index_of_the_listing_is_what_the_registry_says():
    generate = load_generator()
    assert generate.written(generate.measured()) == generate.FILE.read_text(), "run: python docs/generate.py"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.parametrize("slot", SLOTS)
def test_every_method_has_its_section_in_the_gallery(slot: str):
    page = load_generator().gallery(slot)
    for name in registry(slot).names():
        assert f"{{#{name}}}" in page


def test_every_citation_has_its_entry():
    keys = set(re.findall(r"^@\w+\{(\S+?),", BIB, re.MULTILINE))
    for slot in SLOTS:
        for name in registry(slot).names():
            assert set(getattr(registry(slot)[name], "cites", ())) <= keys, name


def test_entries_are_sorted_and_stand_once():
    keys = re.findall(r"^@\w+\{(\S+?),", BIB, re.MULTILINE)
    assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if named(page) in SLOW else ()) for page in PAGES], ids=named
)
def test_python_in_the_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = blocks(page, "python")
    if not code:
        return
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), named(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_the_documentation_are_commands(page: Path):
    for words in commands(page):
        parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_executed_here(page: Path):
    opened = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
    assert set(opened) <= {"python", "console", "yaml", "toml", "text"}  # text is no code, or needs another machine


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_targets_of_make_in_the_documentation_exist(page: Path):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for line in "".join(blocks(page, "console")).splitlines() if line.startswith("$ make ")]
    targets = {word for line in lines for word in shlex.split(line, comments=True)[2:] if "=" not in word}
    assert targets <= known


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=named)
def test_yaml_in_the_documentation_is_an_experiment(page: Path):
    """Or a part of one, which is tried on the bundled digits."""
    for block in blocks(page, "yaml"):
        load({"data": "digits"} | yaml.safe_load(block))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=named)
def test_entry_points_in_the_documentation_name_a_slot_and_a_class(page: Path):
    for block in blocks(page, "toml"):
        for group, entries in tomllib.loads(block)["project"]["entry-points"].items():
            assert group.removeprefix("fl_lightning.") in SLOTS
            for place in entries.values():
                assert f"class {place.partition(':')[2]}(" in page.read_text()


SHORTENED = {
    "run": ["--fast"],
    "sweep": ["--fast", "sweep.trials=2", "sweep.confirm_seeds=[1001]"],
    "matrix": ["--fast"],
}
"""What is added to commands outside of the tutorials: synthetic data and few rounds instead of downloads and hours."""


def can_run_here(words: list[str]) -> bool:
    if words[0] == "reproduce" and len(words) > 1:  # hours; tests/papers runs tables with --fast
        return False
    return not any("ray" in word.split("=")[-1] for word in words) or find_spec("ray") is not None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_of_the_documentation_run(
    page: Path, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """NAME and STUDY stand for the model and the study of the command before."""
    monkeypatch.chdir(tmp_path)
    made: dict[str, str] = {}
    for words in filter(can_run_here, commands(page)):
        added = [] if page.parent.name == "tutorials" else SHORTENED.get(words[0], [])
        done = main([made.get(word, word) for word in words] + added)
        told = capsys.readouterr()
        assert done == 0, (words, told.err[-2000:])
        for placeholder, line in {"STUDY": r"^study (\S+), run", "NAME": r"^registered: (\S+)/\d"}.items():
            if found := re.search(line, told.out, re.MULTILINE):
                made[placeholder] = found[1]


def test_misspelt_metrics_have_no_meaning():
    assert meaning("attack/success") == GLOSSARY["attack/success"]
    assert meaning("attack/sucess/x") is None
    assert meaning("globl/accuracy") is None


@pytest.mark.slow
def test_the_notebook_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "data"))
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    copied = tmp_path / "own-model.ipynb"
    kept = (ROOT / "docs" / "tutorials" / "own-model.ipynb").read_text()
    copied.write_text(kept)
    monkeypatch.setattr(sys.modules["__main__"], "LoanClassifier", None, raising=False)
    again = [cell["outputs"] for cell in notebooks.cells(copied)]
    before = [cell["outputs"] for cell in json.loads(kept)["cells"] if cell["cell_type"] == "code"]
    figures = [re.findall(r"<td>(\d\.\d+)</td>", str(outputs)) for outputs in (again, before)]
    assert figures[0] == figures[1], "run: python docs/notebooks.py docs/tutorials/own-model.ipynb"
    assert len(figures[0]) > 20
