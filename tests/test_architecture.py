"""The shape of the house: who may import whom, what importing costs, what no file may contain."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tuner

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "tuner").rglob("*.py")])
#: Tests may hold text in other scripts, as input.
CODE = sorted([*PRODUCT, *(ROOT / "docs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
MAX_LINES = 400
SCIENCE = {"torch", "optuna", "numpy", "scipy", "sklearn"}
SERVER = {"sqlalchemy", "fastapi", "starlette", "alembic", "uvicorn"}
#: Files that may read the environment: the settings, the entry points, and the launcher's allow-list.
READS_ENVIRONMENT = (
    "service/settings.py",
    "service/cli/",
    "service/launchers/local.py",
    "service/launchers/process.py",
    "service/launchers/ray_",
    "tuner/inline/asking.py",
    "tuner/inline/answer_cache.py",
)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a statement loads, in a process of its own."""
    program = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.api.app", SCIENCE),
        ("service.client", SCIENCE | SERVER),
        ("service.cli.main", SCIENCE | SERVER | {"httpx2", "rich"}),
        # A pre-commit hook starts it for every commit.
        ("service.ci.config", SCIENCE | SERVER | {"httpx2", "rich", "pydantic", "yaml"}),
        ("service.ci.session", SCIENCE | SERVER | {"httpx2", "rich", "pydantic", "yaml"}),
        # A receiver of webhooks copies nothing: it imports what verifies them.
        ("service.webhooks.signature", SCIENCE | SERVER | {"httpx2", "rich", "pydantic", "structlog"}),
        ("tuner", SCIENCE),
        ("tuner.spec", SCIENCE),
        ("tuner.evidence", SCIENCE),
    ],
)
def test_import_is_light(module: str, forbidden: set[str]) -> None:
    assert loaded_by(f"import {module}") & forbidden == set()


def test_every_command_module_is_light_until_it_runs() -> None:
    """`--help` and completion import them all."""
    names = [
        f"service.cli.{file.stem}"
        for file in (ROOT / "service" / "cli").glob("*.py")
        if file.stem != "server"
    ]
    assert loaded_by(f"import {', '.join(names)}") & (SCIENCE | SERVER) == set()


def test_public_names_of_the_library_are_listed() -> None:
    assert sorted(tuner.__all__) == sorted(tuner._HOME), "__all__ and the lazy names agree"
    assert tuner.__all__ == sorted(tuner.__all__)
    program = "import tuner\nfor name in tuner.__all__: getattr(tuner, name)\nprint(*sorted(vars(tuner)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    packages = {file.parent.name for file in (ROOT / "tuner").glob("*/__init__.py")}
    modules = {file.stem for file in (ROOT / "tuner").glob("*.py")}
    helpers = {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    public = {name for name in done.stdout.split() if not name.startswith("_")}
    assert public - packages - modules - helpers <= set(tuner.__all__)
    with pytest.raises(AttributeError):
        tuner.no_such_name  # noqa: B018


@pytest.mark.parametrize("file", PRODUCT, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_is_short_enough_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_code_is_ascii(file: Path) -> None:
    """Text in other scripts is written with escapes, so that a look-alike letter can't hide."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        assert line.isascii(), f"line {number}: {line.strip()}"


def calls_of(file: Path) -> list[tuple[int, str, ast.Call]]:
    return [
        (node.lineno, ast.unparse(node.func), node)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_nothing_runs_data_as_code() -> None:
    found = []
    for file in PRODUCT:
        source = file.read_text()
        imported = r"^\s*(?:import|from) (?:c?pickle|marshal|shelve|dill|joblib)\b"
        if match := re.search(imported, source, re.MULTILINE):
            found.append(f"{file.relative_to(ROOT)}: {match[0].strip()}")
        for line, name, call in calls_of(file):
            options = {each.arg: ast.unparse(each.value) for each in call.keywords}
            is_forbidden = (
                name
                in ("eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load")
                or options.get("shell") == "True"
                or (name == "torch.load" and options.get("weights_only") != "True")
                or (name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
                or name.partition(".")[0] in ("pickle", "marshal")
            )
            if is_forbidden:
                found.append(f"{file.relative_to(ROOT)}:{line}: {ast.unparse(call)[:80]}")
    assert not found


def test_only_entry_points_read_the_environment() -> None:
    found = [
        str(file.relative_to(ROOT))
        for file in PRODUCT
        if not str(file.relative_to(ROOT)).startswith(READS_ENVIRONMENT)
        and re.search(r"\benviron\b|\bgetenv\(", file.read_text())
    ]
    assert not found


def test_nothing_in_the_product_is_for_tests_only() -> None:
    """Tests replace edges from outside; the product does not ask whether it is being tested."""
    found = [
        str(file.relative_to(ROOT))
        for file in PRODUCT
        if re.search(r"PYTEST_CURRENT_TEST|unittest\.mock|\bimport pytest\b|\bfrom tests\b", file.read_text())
    ]
    assert not found


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(file.relative_to(ROOT)) for file in PRODUCT if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    # Migrations are named by what they do, and Alembic's own template documents them.
    assert not [name for name in silent if "migrations" not in name]


def test_what_the_tests_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [
        *project["dependencies"],
        *(need for each in project["optional-dependencies"].values() for need in each),
    ]
    declared = {re.split(r"[^\w.-]", need)[0].lower() for need in needs}
    nodes = [
        node for file in (ROOT / "tests").rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))
    ]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    imported = {name.partition(".")[0] for name in names}
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported - set(sys.stdlib_module_names)
        if name in distributions and not {each.lower() for each in distributions[name]} & declared
    }
    # What comes with a declared package by its own contract.
    assert undeclared - {"_pytest", "anyio"} == set()


@pytest.fixture
def ci_machine(tmp_path: Path) -> Path:
    """A folder for PATH in which make and apt-get tell what they were asked, and curl is missing."""
    for name in ("bash", "dirname", "ls"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    for name, script in {
        "make": 'echo "make $* CI=$CI"',
        "apt-get": 'echo "apt-get $*"',
        "initdb": ":",
    }.items():
        (tmp_path / name).write_text(f"#!{tmp_path}/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run_ci(machine: Path) -> list[str]:
    environment = {"PATH": str(machine)}
    done = subprocess.run(
        [machine / "bash", ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_ci_makes_what_is_missing_a_failure(ci_machine: Path) -> None:
    assert run_ci(ci_machine)[-2:] == ["make check CI=1", "make test CI=1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
def test_ci_installs_curl_where_it_may(ci_machine: Path) -> None:
    assert run_ci(ci_machine)[:2] == [
        "apt-get update -q",
        "apt-get install -yq --no-install-recommends curl chromium",
    ]
    (ci_machine / "apt-get").unlink()
    assert run_ci(ci_machine) == ["make check CI=1", "make test CI=1"]
