"""The documentation is true: its commands run, its code runs, its links lead somewhere, its tables are complete.

A page's ``console`` blocks are transcripts: lines after ``$`` are commands, the others are what they printed. The
README and the tutorial are executed, in order, against a real service; everywhere else commands are checked to
exist with their options. A new setting, command, route, event or error code breaks a test here until it is
documented (`docs/generate.py` writes the tables).
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from acceptance.deployment import Deployment, wait_for
from warm import Warm, warm_process

from service.api.problems import KINDS
from service.cli.summary import recommendation_lines
from service.schemas import RecommendationOut
from service.settings import FOREIGN, PREFIX, Settings
from service.states import JobState
from tuner.evidence import Estimate, NormSketch, PairedDifference, Verdict
from tuner.spec import ClipSetting, study_spec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: Pages whose transcripts are executed from top to bottom, each against its own study database.
EXECUTED = [ROOT / "README.md", DOCS / "tutorial" / "first-study.md", DOCS / "how-to" / "ask-tell.md"]
#: Where the pages say the service is.
DEFAULT_URL = "http://127.0.0.1:8765"
#: What a test does not do again: set-up, and the service itself, which the fixture starts.
NOT_EXECUTED = ("git ", "cd ", "make ", "docker ", "pip ", ". ", "cliptune serve", "cliptune demo", "sudo ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a transcript and what the page says that it printed."""

    block: Block
    text: str
    output: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands_of(block: Block) -> list[Command]:
    found: list[tuple[list[str], list[str]]] = []
    continues = False
    for line in block.text.splitlines():
        # The demo shows the commands that it runs; they are its output.
        if line.startswith("$ ") and not (found and found[0][0] == ["make demo"]):
            found.append(([line[2:]], []))
        elif continues:
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
        else:
            pytest.fail(f"{block}: a transcript begins with a command, got {line!r}")
        continues = found[-1][0][-1].endswith("\\") and not found[-1][1]
    return [Command(block, "\n".join(lines), tuple(output)) for lines, output in found]


ALL_BLOCKS = [block for page in PAGES for block in blocks_of(page)]
ALL_COMMANDS = [
    command for block in ALL_BLOCKS if block.language == "console" for command in commands_of(block)
]


def generator() -> Any:
    spec = spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- transcripts ----


class Transcript:
    """Runs a page's commands in order; ids that a page shows stand for those of this run."""

    def __init__(self, deployment: Deployment) -> None:
        self._environment = deployment.environment
        self._url = json.loads((deployment.home / "service.json").read_text())["url"]
        self._ids: dict[str, str] = {}

    def run(self, command: Command) -> None:
        text = command.text.replace(DEFAULT_URL, self._url)
        for shown, real in self._ids.items():
            text = re.sub(rf"\b{shown}-[0-9a-f-]{{27}}\b", real, text)
            text = re.sub(rf"\b{shown}\b(?!-)", real[:8], text)
        done = subprocess.run(
            ["bash", "-c", text], env=self._environment, capture_output=True, text=True, timeout=60
        )
        printed = done.stderr + done.stdout
        assert done.returncode == 0, f"{command.block}: {text}\n{printed}"
        self._learn_ids("\n".join(command.output), printed)
        for word in labels(command.output):
            assert word in labels(printed.splitlines()), (
                f"{command.block}: {text}\nprinted no {word!r}:\n{printed}"
            )

    def _learn_ids(self, shown: str, printed: str) -> None:
        ids = r'(?:study |studies/|"id": ?")([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8}\b)'
        for page_id, real_id in zip(re.findall(ids, shown)[:1], re.findall(ids, printed)[:1], strict=False):
            self._ids.setdefault(page_id[:8], real_id)


def labels(lines: tuple[str, ...] | list[str]) -> list[str]:
    """What must be the same in every run: the first word of rows, and the keys of JSON."""
    found = []
    for line in lines:
        keys = re.findall(r'"(\w+)": ?', line)
        if keys:
            found += keys
        elif match := re.match(r" ?([a-zA-Z_/]\S*)", line):
            found.append(re.sub(r"[0-9a-f]{8}\b|\d+", "#", match[1]))
    # A list of studies begins its rows with their ids.
    return [word for word in found if word != "#"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """`cliptune serve` for a user whose home folder is the test's."""
    user = tmp_path_factory.mktemp("user")
    home = user / ".cliptune"
    with Deployment(home, f"sqlite:///{home / 'cliptune.db'}") as running:
        running.environment |= {
            "HOME": str(user),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        server = running.start("serve")
        wait_for(lambda: running.is_up(server), "the API")
        wait_for(lambda: any(worker.alive for worker in running.list_workers()), "the worker")
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_transcripts_run_as_printed(page: Path, deployment: Deployment) -> None:
    transcript = Transcript(deployment)
    commands = [
        command for command in ALL_COMMANDS if command.block.page == page and not is_set_up(command.text)
    ]
    assert len(commands) >= 5, "the page shows commands"
    can_curl = has_curl_json()
    for command in commands:
        if can_curl or not command.text.startswith("curl "):
            transcript.run(command)


def has_curl_json() -> bool:
    """Whether the machine has curl 7.82 or later; under CI its absence is a failure."""
    try:
        done = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True)
    except FileNotFoundError:
        found = False
    else:
        found = "--json" in done.stdout
    assert found or not os.environ.get("CI"), "install curl 7.82 or later: the README's commands are tested"
    return found


def is_set_up(text: str) -> bool:
    return re.sub(r"^(?:\w+=\S* )+", "", text).startswith(NOT_EXECUTED)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """Each page's program is a process of its own, which finds torch imported; a warning is an error."""
    with warm_process("-W", "error") as process:
        yield process


@pytest.mark.parametrize(
    "page",
    sorted({block.page for block in ALL_BLOCKS if block.language == "python"}),
    ids=lambda page: page.name,
)
def test_python_runs(page: Path, deployment: Deployment, warm: Warm, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(
        "\n".join(block.text for block in ALL_BLOCKS if block.page == page and block.language == "python")
    )
    done = warm.run(program, env=deployment.environment, cwd=deployment.home, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows what it gives"


@pytest.mark.parametrize("block", [each for each in ALL_BLOCKS if each.language == "json"], ids=str)
def test_json_is_json_and_a_study_is_valid(block: Block) -> None:
    document = json.loads(block.text)
    if "workload" in document and "id" not in document:
        document.pop("name", None)
        assert study_spec(document).workload in ("charlm-rnn", "digits-mlp")


@pytest.mark.parametrize(
    "block", [each for each in ALL_BLOCKS if each.language in ("console", "bash", "sh")], ids=str
)
def test_shell_blocks_parse(block: Block) -> None:
    is_transcript = block.language == "console"
    script = "\n".join(each.text for each in commands_of(block)) if is_transcript else block.text
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)


@pytest.mark.parametrize("block", [each for each in ALL_BLOCKS if each.language == "yaml"], ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)


def test_every_fence_has_a_language_that_is_checked_or_plain_text() -> None:
    languages = {"console", "bash", "sh", "python", "json", "text", "yaml", "nginx", "sql"}
    assert not [str(block) for block in ALL_BLOCKS if block.language not in languages]


# ---- names in the text ----


def parsed_commands() -> Iterator[tuple[Block, list[str]]]:
    """Every `cliptune ...` of a shell block, split into words."""
    for block in ALL_BLOCKS:
        if block.language == "console":
            lines = [command.text for command in commands_of(block)]
        elif block.language in ("bash", "sh"):
            lines = [line for line in block.text.splitlines() if "cliptune " in line]
        else:
            continue
        for line in lines:
            for part in re.split(r"\s(?:\||&&|;)\s", line.replace("\\\n", " ")):
                if match := re.match(r"\s*(?:\w+=\S* +)*(cliptune .*)", part, re.DOTALL):
                    words = shlex.split(match[1], comments=True)
                    # What follows belongs to another program.
                    yield block, words[: words.index("--")] if "--" in words else words


def test_commands_and_options_exist() -> None:
    from typer.main import get_command

    from service.cli.main import app

    group: Any = get_command(app)
    seen = set()
    for block, words in parsed_commands():
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if len(words) > 1 and not words[1].startswith("-"):
            command, rest = group, words[1:]
            while hasattr(command, "commands"):
                assert rest and rest[0] in command.commands, f"{block}: {words} is no command"
                command, rest = command.commands[rest[0]], rest[1:]
            known = {option for each in command.params for option in each.opts}
            assert options <= known | {"--help"}, f"{block}: {options - known}"
            seen.add(words[1])
    assert seen >= {"serve", "submit", "watch", "show", "recommend", "worker", "api"}


def test_settings_in_the_text_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN
    for page in PAGES:
        for name in re.findall(r"\bCLIPTUNE_[A-Z_]+\b", page.read_text()):
            # CLIPTUNE_PROT is the typo that the page about typos shows.
            assert name in known or name in ("CLIPTUNE_", "CLIPTUNE_PROT"), f"{page.name}: {name}"


def test_addresses_in_the_text_exist() -> None:
    paths = set(json.loads((DOCS / "reference" / "openapi.json").read_text())["paths"])
    patterns = [re.compile(re.sub(r"{[^}]+}", "[^/]+", path)) for path in paths]
    for page in PAGES:
        for path in re.findall(r"(?<![\w.])(/v1/[\w/{}-]+)", page.read_text()):
            assert any(pattern.fullmatch(path) for pattern in patterns), f"{page.name}: {path}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in anchors(file), f"{page.relative_to(ROOT)}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that headings get, in the usual Markdown renderings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    listed = {
        (DOCS / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s:]+)\)", index)
    }
    missing = [page for page in DOCS.rglob("*.md") if page != DOCS / "README.md" and page not in listed]
    assert not missing


# ---- the tables are complete ----


@pytest.mark.parametrize("name", ["settings.md", "cli.md", "http.md", "methods.md", "errors.md"])
def test_reference_is_what_the_code_says(name: str) -> None:
    page = DOCS / "reference" / name
    rendered = generator().PAGES[page]()
    assert page.read_text() == rendered, "run: python docs/generate.py"


def code_files() -> list[Path]:
    return sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "tuner").rglob("*.py")])


def error_codes() -> set[str]:
    """Every stable code that the sources can give."""
    found = set(KINDS)
    for file in code_files():
        source = file.read_text()
        found |= set(re.findall(r"\[([a-z]+(?:_[a-z]+)+)\]\"", source))
        for node in ast.walk(ast.parse(source)):
            value = None
            if isinstance(node, ast.keyword) and node.arg == "code":
                value = node.value
            elif isinstance(node, ast.Assign):
                target = node.targets[0]
                name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
                value = node.value if name == "code" else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.add(value.value)
    return found


def test_every_error_code_is_documented_and_real() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE))
    branches = re.search(r"only name branches[^`]*((?:[^`]*`[a-z_]+`)+)", page)
    assert branches is not None
    documented |= set(re.findall(r"`([a-z_]+)`", branches[1]))
    assert documented == error_codes()


def test_every_http_error_is_in_the_table_of_the_service() -> None:
    """A code that a route or the client raises has a status, a title and advice."""
    raised = set()
    for file in (ROOT / "service" / "api").rglob("*.py"):
        raised |= set(re.findall(r"code=\"([a-z_]+)\"", file.read_text()))
    assert raised <= set(KINDS)


def test_every_event_is_documented() -> None:
    page = (DOCS / "reference" / "http.md").read_text()
    section = page.partition("## Events")[2].partition("## Bodies")[0]
    documented = {
        kind
        for cells in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        for kind in re.findall(r"`(\w+)`", cells)
    }
    emitted = {str(state) for state in JobState} - {"running"} | {"cancel_requested"}
    for file in (ROOT / "service").rglob("*.py"):
        emitted |= set(re.findall(r"append_event\([^)]*?\"([a-z_]+)\"", file.read_text()))
    assert documented == emitted


def sample() -> RecommendationOut:
    """A recommendation in which every row of the table has something to say."""
    best = ClipSetting(method="global_norm", threshold=0.3)
    norms = NormSketch(median=0.5, q90=0.7, q99=1.0, max=2.0)
    difference = PairedDifference(mean=-0.1, low=-0.2, high=-0.05, num_pairs=3)
    value = Estimate(mean=1.9, standard_error=0.01, num_seeds=3, num_diverged=0)
    return RecommendationOut(
        id="i", study_id="s", workload="charlm-rnn", objective="val_loss", fingerprint="f", parameters={},
        created_at=datetime.now(UTC),
        threshold_name="max_norm", threshold_unit="gradient norm", verdict=Verdict.CLIP, setting=best,
        interval=(0.2, 0.4), reason="A sentence.", best=best, value=value, off=value, difference=difference,
        against_current=difference, clip_fraction=0.5, mean_scale=0.9, norms=norms, kappa=0.5, num_trials=16,
        num_diverged_trials=1, lane_steps=100, full_runs=2.0, train_seconds=3.0,
        snippets={"pytorch": "a", "huggingface": "b", "lightning": "c"}, provenance={},
    )  # fmt: skip


def test_demo_transcript_has_the_rows_of_the_table() -> None:
    demo = next(command for command in ALL_COMMANDS if command.text == "make demo")
    assert demo.block.page == ROOT / "README.md"
    rows = [line[1:12].strip() for line in demo.output]
    wanted = [line[1:12].strip() for line in recommendation_lines(sample())]
    assert [row for row in wanted if row] == [row for row in rows if row in wanted and row]
    text = "\n".join(demo.output)
    for words in (
        "difference from today's value",
        "as good:",
        "95 % interval",
        "threshold (log)",
    ):
        assert words in text


# ---- what must not be in any file ----

#: Put together here, so that this file does not contain them.
_FORBIDDEN = {
    "a path of one machine": r"(?<![\w.:/}])/(?:wor" + r"k|ro" + r"ot|tm" + r"p)/\w",
    "a package registry": r"(?i)py" + r"pi\.|--(?:extra-)?index-url|files\.pythonhosted|artifac" + r"tory",
    "how the project was written": r"(?i)\b(?:clau"
    + r"de|anthro"
    + r"pic|chatg"
    + r"pt|co-autho"
    + r"red-by|ai-gener"
    + r"ated|coding ag"
    + r"ent|sub-?ag"
    + r"ent)\b|iss"
    + r"ues show|DESI"
    + r"GN\.md",
}


@cache
def text_files() -> list[tuple[Path, str]]:
    """Every file that is no binary, with what it says."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if file.is_file() and b"\0" not in (content := file.read_bytes())[:8000]:
            found.append((file, content.decode(errors="replace")))
    return found


@pytest.mark.parametrize("what", _FORBIDDEN)
def test_no_file_tells(what: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file, text in text_files()
        if re.search(_FORBIDDEN[what], text)
        for number, line in enumerate(text.splitlines(), 1)
        if (match := re.search(_FORBIDDEN[what], line))
    ]
    assert not found
