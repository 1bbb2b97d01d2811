"""The house holds: imports point down the floors only, no circles, few loose modules, all files in wheel and sdist."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fl_lightning"
FLOORS = (
    {"errors", "paths", "randomness", "callbacks", "doctor", "examples"},
    {"inputs"},
    {"registry", "parallel", "references"},
    {"data", "aggregators", "participation", "server"},
    {"models", "partition"},
    {"defenses", "clients"},
    {"engines"},
    {"attacks"},
    {"config", "metrics"},
    {"federation"},
    {"tracking", "testing"},
    {"runs", "analysis"},
    {"search", "papers", "certificates"},
    {"_matrix"},
    {"integrations"},
    {"cli"},
)
"""Folders and loose modules, the ground floor first; each may use what lies below it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def for_type_checkers(tree: ast.AST) -> set[ast.AST]:
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, in functions, too."""
    tree = ast.parse(path.read_text())
    skipped = for_type_checkers(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fl_lightning"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


ARROWS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_floor():
    floors = [room for floor in FLOORS for room in floor]
    assert len(floors) == len(set(floors))
    assert {room(name) for name in MODULES} - {""} <= set(floors)


def test_arrows_between_rooms_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    up = [
        f"{module} -> {other}"
        for module, others in ARROWS.items()
        for other in others
        if room(module) and room(other) and room(module) != room(other) and floor[room(other)] >= floor[room(module)]
    ]
    assert not up


def test_no_module_imports_itself_through_others():
    try:
        graphlib.TopologicalSorter(ARROWS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_checks_see_imports_in_functions():
    assert "fl_lightning.config" in ARROWS["fl_lightning.cli._main"]


def test_few_modules_are_loose():
    loose = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(loose) <= 9, loose
    assert not {"matrix", "sweep", "run", "load", "resume", "reproduce"} & set(loose), "no module bears a verb's name"


PRIVATE = {
    "cli/_arguments.py": {"_subparsers"},
    "cli/_completion.py": {"_SubParsersAction", "_actions"},
    "cli/_parser.py": {"argparse._SubParsersAction"},
    "engines/_trainer.py": {"_batches_that_stepped"},
    "integrations/flower.py": {"_check_and_log_replies"},
    "parallel/_processes.py": {"_exit"},  # documented
    "paths.py": {"_tracking_uri", "mlflow.tracking._tracking_service.utils"},
    "search/_cmaes.py": {"_attr_key_optimizer", "cmaes._cma", "numpy.random._mt19937", "numpy.random._pickle"},
    "search/_study.py": {"_storage", "_trial_id", "optuna.study._optimize"},  # the last: its logger
    "tracking/_embedded.py": {
        "_artifact_repos_cache",
        "_get_latest_schema_revision",
        "_upgrade_db",
        "mlflow.tracking._tracking_service.utils",
    },
    "tracking/_models.py": {"mlflow.pytorch._lightning_autolog"},
    "tracking/_store.py": {"_use_tracking_uri", "mlflow.tracking._tracking_service.utils"},
}
"""Private members of other libraries that the package uses. A new one needs a comment, and an upper bound in pyproject.toml."""

BOUNDED = {"flwr", "lightning", "mlflow", "optuna"}
"""Libraries whose private members are used: the next minor version may rename them."""


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names with a leading underscore that a file uses of something else, and dotted names of private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("fl_lightning"):
            yield from (node.module, *(alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # modules looked up, quoted annotations
            yield from re.findall(r"^(?:[a-z]\w*\.)+_[\w.]+", node.value)


def test_private_members_of_others_are_on_a_list():
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in MODULES.values()}
    ours = {"_asdict", "_fields", "_replace"}  # of named tuples: documented
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) in ("self", "cls")
            ):
                ours.add(node.attr)
    used: dict[str, set[str]] = {}
    for file, tree in trees.items():
        for name in private_names(tree):
            private = re.search(r"(?:^|\.)_(?!_)", name)
            if private and name not in ours and not name.startswith("fl_lightning."):
                used.setdefault(file, set()).add(name)
    assert used == PRIVATE


def test_libraries_whose_private_members_are_used_have_an_upper_bound_that_holds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["flower"]]
    required = {one.name: one.specifier for one in map(Requirement, lines)}
    assert {name for name, bounds in required.items() if any(bound.operator == "<" for bound in bounds)} == BOUNDED
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert not [name for name in BOUNDED - {"flwr"} if tested[name] not in required[name]]


def test_linters_are_never_told_to_look_away_from_a_room():
    assert not [name for name, path in MODULES.items() if "noqa: TID" in path.read_text()]


@pytest.mark.parametrize("link", ["callbacks", "configs"])
def test_links_lead_into_the_package(link: str):
    assert (ROOT / link).is_symlink()
    assert (ROOT / link).resolve() == PACKAGE / link
    assert not (PACKAGE / link).is_symlink()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Files in a wheel and in an sdist built from a copy without the links, as a checkout on Windows has it."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "fl_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from setuptools import build_meta as b; print(b.build_wheel('.')); print(b.build_sdist('.'))"
    built = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    wheel, sdist = built.stdout.split()[-1], next(folder.glob("*.tar.gz"))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        in_wheel = set(opened.namelist())
    assert wheel
    with tarfile.open(sdist) as packed:
        in_sdist = {name.partition("/")[2] for name in packed.getnames()}
    return in_wheel, in_sdist


def test_wheel_and_sdist_hold_every_file_of_the_package(archives: tuple[set[str], set[str]]):
    shipped = {
        str(path.relative_to(ROOT))
        for kind in ("*.py", "*.yaml", "*.bib", "py.typed", "*.html", "*.css")
        for path in PACKAGE.rglob(kind)
    }
    assert sum(name.endswith(".yaml") for name in shipped) > 100
    for files in archives:
        assert shipped <= files, sorted(shipped - files)[:10]


def test_the_wheel_installs_no_other_top_level_name(archives: tuple[set[str], set[str]]):
    assert {name.split("/")[0] for name in archives[0] if ".dist-info" not in name} == {"fl_lightning"}


def says_no_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of whatever locale the machine has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    path_open = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and len(call.args) == 1
    mode = call.args[-1] if name == "open" and (path_open or len(call.args) == 2) else None
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwax+t")


def test_text_is_utf_8_whatever_the_locale():
    """Lock files, into which nothing is written, aside."""
    assert says_no_encoding(ast.parse("path.open('a')").body[0].value)  # type: ignore[attr-defined]
    assert not says_no_encoding(ast.parse("path.open('rb')").body[0].value)  # type: ignore[attr-defined]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if "parallel" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and says_no_encoding(node)
    ]
    assert not found
