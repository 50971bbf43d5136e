"""The GitHub Action, its steps run as the platform runs them, against a real service and a real place for comments."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from acceptance.comments import NO_HTTP, Comments, comments_served
from acceptance.pipeline import STUDY, Repository, tune
from acceptance.runner import Finished, Runner, installing

from service.ci.formats.markdown_report import MARKER
from service.keys import create_key

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = sorted((ROOT / "examples" / "github").glob("*.yml"))
#: Where nobody listens.
NOWHERE = "http://127.0.0.1:1"
#: The contract of the action: names and defaults.
INPUTS = {
    "server-url": "", "token": "", "version": "", "config-file": "", "framework": "auto", "key": "", "spec": "",
    "mode": "check", "fail-on": "outside", "tolerance": "", "on-service-error": "warn", "wait": "true",
    "timeout-minutes": "20", "comment": "false",
}  # fmt: skip
#: Inputs that may be given empty, as an expression that has no value.
WITH_DEFAULTS = (
    "mode", "framework", "fail_on", "on_service_error", "offline", "write_lock", "wait", "timeout_minutes",
)  # fmt: skip
OUTPUTS = {
    "study-id", "study-url", "status", "current", "recommended", "low", "high", "verdict", "report-path",
}  # fmt: skip
PULL_REQUEST = {"pull_request": {"number": 7, "head": {"sha": "0" * 40}}}


# ---- what the files say ----


def test_inputs_and_outputs_are_those_of_the_contract() -> None:
    defaults = {name: each["default"] for name, each in ACTION["inputs"].items()}
    assert defaults.items() >= INPUTS.items()
    assert set(ACTION["outputs"]) == OUTPUTS


def test_every_input_and_output_is_documented() -> None:
    page = (ROOT / "docs" / "how-to" / "ci.md").read_text()
    documented = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert documented >= {*ACTION["inputs"], *ACTION["outputs"]}


def test_inputs_reach_scripts_as_variables_alone() -> None:
    steps = ACTION["runs"]["steps"]
    assert not [step["name"] for step in steps if "${{" in step.get("run", "")]
    assert not [step for step in steps if "uses" in step], "no action of somebody else"
    given = " ".join(value for step in steps for value in step["env"].values())
    given += " ".join(step.get("working-directory", "") + step.get("if", "") for step in steps)
    assert set(re.findall(r"inputs\.([\w-]+)", given)) == set(ACTION["inputs"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_example_pins_actions_and_gives_inputs_that_exist(workflow: Path) -> None:
    document = yaml.safe_load(workflow.read_text())
    assert document["permissions"] == {"contents": "read"}, "the least, which a job may raise"
    assert "concurrency" in document
    steps = [step for job in document["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    for each in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each) or each.startswith("OWNER/cliptune@"), each
    for line in workflow.read_text().splitlines():
        assert "uses: actions/" not in line or re.search(r"# v\d+\.\d+\.\d+$", line), line
    for step in steps:
        assert "${{" not in step.get("run", "")
        if step.get("uses", "").startswith("OWNER/cliptune@"):
            assert step["with"].keys() <= ACTION["inputs"].keys()
    for referred in re.findall(r"steps\.\w+\.outputs\.([\w-]+)", workflow.read_text()):
        assert referred in OUTPUTS


# ---- the steps ----


@pytest.fixture
def use(repository: Any, installed: Finished, tmp_path: Path) -> Callable[..., Finished]:
    """A job of the repository that uses the action, which is installed already."""

    def run(*, event: Any = None, job_token: str = "", environment: Any = None, **given: str) -> Finished:
        job = repository.environment | {"GITHUB_REPOSITORY": "octo/nets"} | (environment or {})
        runner = Runner(ROOT, repository.folder, tmp_path / "temp", job, event or {}, job_token)
        return runner.use(known={"install": installed.steps["install"]}, **given)

    return run


@pytest.fixture
def check(use: Any, answered: Any) -> Callable[..., Finished]:
    """The same with the service's address and a key."""

    def run(**given: Any) -> Finished:
        service = {"server_url": answered.url, "token": answered.key, "workload": "digits-mlp"}
        return use(**service | given)

    return run


@pytest.fixture
def comments() -> Iterator[Comments]:
    with comments_served() as server:
        yield server


@pytest.mark.slow
def test_checkout_of_the_action_is_installed(installed: Finished) -> None:
    python = Path(installed.steps["install"]["python"])
    assert python.parent.joinpath("cliptune").exists()
    library = python.parents[1] / "lib"
    assert list(library.glob("python*/site-packages/service/cli/check.py")), (
        "not the clone that it was made from"
    )


@pytest.mark.slow
def test_named_version_is_what_is_asked_for(installed: Finished, tmp_path: Path) -> None:
    temp = Path(installed.steps["install"]["python"]).parents[2]
    (tmp_path / "logging.py").write_text("raise SystemExit('a module of the repository')")
    runner = replace(installing(temp, PIP_NO_INDEX="1", PYTHONPATH=str(tmp_path)), workspace=tmp_path)
    finished = runner.use(only="install", version="9.8.7")
    assert finished.code == 2 and "cliptune==9.8.7" in finished.log
    assert "::error title=cliptune::cliptune could not be installed" in finished.log
    again = runner.use(only="install")
    assert (again.code, again.log) == (0, ""), "what is there is not installed again"


@pytest.mark.parametrize(
    "version", ["--pre", "0.1.0 torch", "0.1.0;true", "x", "git+https://example.org/x", "1\n2"]
)
def test_version_that_is_none_is_refused(tmp_path: Path, version: str) -> None:
    finished = installing(tmp_path).use(only="install", version=version)
    assert finished.code == 2
    assert finished.log.startswith("::error title=cliptune::version is no version such as 0.1.0")


@pytest.mark.slow
def test_environment_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "cliptune-environment").write_text("in the way")
    finished = installing(tmp_path).use(only="install", python="")
    assert finished.code == 2
    assert "::error title=cliptune::no environment could be made" in finished.log


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_python_that_can_not_be_used_is_refused(tmp_path: Path, python: str) -> None:
    finished = installing(tmp_path).use(only="install", python=python)
    assert (
        finished.code == 2 and "::error title=cliptune::the input python names no Python 3.11" in finished.log
    )


@pytest.mark.slow
def test_bad_value_fails_the_step_with_its_evidence(check: Any, answered: Any) -> None:
    finished = check(config_file="conf/train.yaml")
    assert finished.code == 1
    outputs = finished.outputs
    assert (outputs["status"], outputs["verdict"]) == ("failed", "regression")
    assert (outputs["current"], outputs["recommended"]) == ("0.005", "off")
    assert outputs["study-id"] == answered.study_id
    assert outputs["study-url"] == f"{answered.url}/v1/studies/{answered.study_id}"
    annotations = [line for line in finished.log.splitlines() if line.startswith("::")]
    assert len(annotations) == 1, "one per file"
    assert annotations[0].startswith("::error file=conf/train.yaml,line=3,title=")
    assert finished.report.startswith(f"{MARKER}\n### Gradient clipping: 1 clip value checked: 1 failed.")
    assert finished.summary == finished.report.removeprefix(f"{MARKER}\n")
    assert answered.key not in finished.log + finished.report


@pytest.mark.slow
def test_good_value_passes(check: Any, repository: Any) -> None:
    repository.config.write_text(repository.config.read_text().replace("0.005", "0.0"))
    finished = check()
    assert finished.code == 0, finished.log
    assert finished.outputs["status"] == "passed" and "1 ok" in finished.summary
    assert "::error" not in finished.log and "::warning" not in finished.log


@pytest.mark.slow
def test_job_s_own_variables_hold_where_no_input_is_given(use: Any, answered: Any, repository: Any) -> None:
    job = {"CLIPTUNE_URL": answered.url, "CLIPTUNE_API_KEY": answered.key}
    given = {"workload": "digits-mlp", "working_directory": "conf", "config_file": "train.yaml"}
    finished = use(environment=job, **given)
    assert finished.code == 1 and "file=conf/train.yaml" in finished.log
    assert use(environment=job, server_url=NOWHERE, **given).outputs["status"] == "unavailable"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"server_url": NOWHERE, "token": "x"}, 0, "be reached"),
        ({"server_url": NOWHERE, "token": "x", "on_service_error": "fail"}, 3, "be reached"),
        ({"server_url": NOWHERE}, 0, "No access key was given"),
        ({"server_url": NOWHERE, "token": "x"} | dict.fromkeys(WITH_DEFAULTS, ""), 0, "be reached"),
    ],
    ids=["down", "down and it matters", "fork without a key", "variables that nobody set"],
)
def test_outage_is_told_and_fails_only_on_demand(
    use: Any, given: dict[str, str], code: int, words: str
) -> None:
    finished = use(workload="digits-mlp", comment="true", event=PULL_REQUEST, **given)
    assert finished.code == code, finished.log
    assert finished.outputs["status"] == "unavailable"
    assert words in finished.summary.replace("&#39;", "'")
    assert finished.log.count("::error" if code else "::warning") == 1
    assert "No comment: the job has no token." in finished.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "which workload conf/train.yaml trains is not known"),
        ({"workload": "w", "mode": "chek"}, "mode is 'chek': use check or tune or apply"),
        ({"workload": "w", "comment": "yes"}, "comment is 'yes': use false or true"),
        ({"workload": "w", "mode": "apply"}, "mode apply needs config-file"),
        ({"mode": "tune"}, "mode tune needs spec"),
        ({"workload": "w", "server_url": "cliptune.example.org"}, "server-url is 'cliptune.example.org'"),
        ({"workload": "w", "mode": "tune", "offline": "true"}, "leave out offline"),
        ({"workload": "w", "tolerance": "x"}, "tolerance"),
        ({"workload": "w", "key": "a.b"}, "name the files"),
    ],
)
def test_wrong_input_is_told_in_every_place(use: Any, given: dict[str, str], words: str) -> None:
    finished = use(**{"server_url": NOWHERE, "token": "x"} | given)
    assert finished.code == 2, finished.log
    assert finished.outputs["status"] == "error"
    (annotation,) = [
        line for line in finished.log.splitlines() if line.startswith("::error title=cliptune::")
    ]
    assert words in annotation
    assert finished.report.startswith(MARKER) and "nothing was checked" in finished.summary


@pytest.mark.slow
def test_no_input_becomes_a_command_or_an_option(use: Any, repository: Any) -> None:
    hostile = "$(touch pwned) `touch pwned`; touch pwned #'\"\n--exit-zero\n--report=json=pwned"
    for given in (
        {"config_file": hostile, "workload": hostile},
        {"framework": hostile},
        {"key": hostile, "config_file": "conf/train.yaml"},
        {"tolerance": hostile},
        {"mode": "tune", "spec": hostile},
        {"mode": "tune", "timeout_minutes": hostile},
        {"mode": hostile},
    ):
        finished = use(**{"server_url": NOWHERE, "token": "x", "workload": "w"} | given)
        assert finished.code == 2 or finished.outputs["status"] == "unavailable", finished.log
    assert not [path for path in repository.folder.rglob("*") if "pwned" in path.name]


@pytest.mark.slow
def test_apply_writes_the_value_and_shows_the_difference(check: Any, repository: Any) -> None:
    hostile = "::error::x: 1\n##[error]y\nmax_grad_norm"
    repository.config.write_text(repository.config.read_text().replace("max_grad_norm", hostile))
    given = {"mode": "apply", "config_file": "conf/train.yaml"}
    finished = check(**given)
    assert finished.code == 0, finished.log
    assert repository.git("diff", "--", "conf").count("\n+max_grad_norm: 0.0  # as in the paper") == 1
    for text in (finished.report, finished.summary):
        assert "    +max_grad_norm: 0.0  # as in the paper" in text
    assert finished.outputs["current"] == "0.005" and finished.outputs["recommended"] == "off"
    commands = [line.strip() for line in finished.log.splitlines() if line.strip().startswith("::")]
    assert all(line.startswith("::warning file=conf/train.yaml") for line in commands), commands
    assert "##[" not in finished.log
    again = check(**given)
    assert again.code == 0 and "already applied" in again.log
    assert check(mode="apply", config_file="conf/gone.yaml").code == 2
    softened = check(server_url=NOWHERE, **given)
    assert softened.code == 0 and softened.outputs["status"] == "unavailable"


@pytest.fixture
def locked(repository: Repository) -> Path:
    """A config for which the repository's lock recommends 0.42."""
    shutil.copytree(ROOT / "tests" / "data" / "hook", repository.folder, dirs_exist_ok=True)
    return repository.config


@pytest.mark.slow
def test_apply_in_a_file_with_a_long_line_ends(use: Any, locked: Path) -> None:
    long = ", ".join(map(str, range(30_000)))
    assert len(long) > 65_536, "more than a pipe and a comment hold"
    locked.write_text(f"{locked.read_text()}vocabulary: [{long}]\n")
    finished = use(mode="apply", offline="true", config_file="conf/train.yaml")
    assert finished.code == 0 and "max_grad_norm: 0.42\n" in locked.read_text()
    for text in (finished.report, finished.summary):
        assert "    +max_grad_norm: 0.42" in text and len(text) < 2000


def test_what_is_applied_leaves_room_in_a_comment() -> None:
    block = runpy.run_path(str(ROOT / "action" / "run.py"))["block"]
    lines = ["ü" * 600] * 40
    whole = block("Applied", lines[:2], 65_000)
    assert whole == "\nApplied:\n\n" + 2 * f"    {'ü' * 500} ...\n"
    cut = block("Applied", lines, 5000)
    assert 4000 < len(cut.encode()) < 5100 and cut.endswith("\nThe log has 36 lines more.\n")
    assert block("Applied", [], 0) == ""


def test_command_that_was_killed_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "cliptune"
    command.write_text("#!/bin/sh\necho so far\necho why >&2\nkill -9 $$\n")
    command.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    run = runpy.run_path(str(ROOT / "action" / "run.py"))["run"]
    assert run([], {}, captured=True) == (137, "so far\n", "why")


@pytest.mark.slow
def test_what_can_not_be_applied_is_told_in_every_place(use: Any, locked: Path) -> None:
    locked.write_text("output_dir: out\nper_device_train_batch_size: 8\nlearning_rate: 1.0e-3\n")
    finished = use(mode="apply", offline="true", config_file="conf/train.yaml")
    assert (finished.code, finished.outputs["status"]) == (2, "refused"), finished.log
    for text in (finished.report, finished.summary):
        assert re.search(r"^Not applied:\n\n    cliptune: .*\[missing_key\]$", text, re.MULTILINE)


@pytest.mark.slow
def test_job_s_own_python_settings_do_not_reach_it(use: Any, locked: Path) -> None:
    for name in ("service", "tuner"):
        (locked.parents[1] / name).mkdir()
        (locked.parents[1] / name / "__init__.py").write_text("raise SystemExit('of the repository')")
    locked.write_text(locked.read_text().replace("max_grad_norm", "# größe 中\nmax_grad_norm"))
    job = {"PYTHONPATH": ".", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    finished = use(mode="apply", offline="true", config_file="conf/train.yaml", environment=job)
    assert finished.code == 0 and "+max_grad_norm: 0.42" in finished.log, finished.log
    assert "# größe 中" in finished.log and "# größe 中" in finished.report


# ---- the nightly job ----


@pytest.mark.slow
def test_tune_runs_the_study_and_checks_the_config_against_it(answered: Any) -> None:
    finished = answered.nightly
    assert finished.code == 1, finished.log
    assert (finished.outputs["status"], finished.outputs["recommended"]) == ("failed", "off")
    assert (
        finished.outputs["study-id"]
        in (answered.deployment.home / "repository" / "cliptune.lock.json").read_text()
    )
    assert finished.report.startswith(MARKER) and "1 failed" in finished.summary
    lines = [line.strip() for line in finished.log.splitlines()]
    assert [line[:7] for line in lines if line.startswith("::")].count("::group") == 1, finished.log
    assert "\x1b" not in finished.log and "\r" not in finished.log


@pytest.mark.slow
def test_job_that_is_repeated_asks_nothing_again(answered: Any, installed: Finished) -> None:
    with answered.deployment.database().write() as session:
        key = create_key(session, label="nightly", scopes=("write",))
    job = Repository(answered.deployment.home / "repository")
    again = tune(job, installed, server_url=answered.url, token=key)
    assert again.code == 1 and again.outputs["study-id"] == answered.study_id
    # Another study, for which no worker is there: it is submitted, and nobody waits.
    (job.folder / "other.json").write_text(json.dumps(STUDY | {"seed": 1}))
    left = tune(job, installed, server_url=answered.url, token=key, spec="other.json", wait="false")
    assert left.code == 0, left.log
    assert left.outputs["status"] == "timed_out" and left.outputs["study-id"] not in ("", answered.study_id)
    refused = tune(job, installed, server_url=answered.url, token=answered.key, spec="other.json")
    assert (
        refused.code == 0
        and refused.outputs["status"] == "unavailable"
        and "lacks a scope" in refused.summary
    )


# ---- the comment ----


@pytest.mark.slow
def test_comment_is_made_once_and_then_updated(check: Any, repository: Any, comments: Comments) -> None:
    for _ in range(100):
        comments.write("an opinion", kind="User")
    comments.kept[0]["user"] = None  # the account was deleted
    foreign = f"{MARKER}\nmy own"
    comments.write(foreign, kind="User")
    job = {"environment": {"GITHUB_API_URL": comments.url}, "event": PULL_REQUEST, "job_token": "ghs_x"}
    first = check(comment="true", **job)
    assert first.code == 1, "the comment makes no failed check a passed one"
    assert len(comments.kept) == 102 and comments.kept[-1]["body"] == first.report
    repository.config.write_text(repository.config.read_text().replace("0.005", "0.0"))
    second = check(comment="true", **job)
    assert second.code == 0, second.log
    assert len(comments.kept) == 102 and comments.kept[-1]["body"] == second.report
    assert comments.kept[-2]["body"] == foreign, "somebody else's text is left alone"
    assert {token for _, _, token in comments.calls} == {"Bearer ghs_x"}


@pytest.fixture
def comment(installed: Finished, repository: Any, tmp_path: Path) -> Callable[..., Finished]:
    """The last step alone, after one that left a report."""
    report = tmp_path / "report.md"
    report.write_text(f"{MARKER}\nall well\n")

    def run(api: str, event: Any = PULL_REQUEST, report: Path = report) -> Finished:
        job = repository.environment | {"GITHUB_API_URL": api, "GITHUB_REPOSITORY": "octo/nets"}
        runner = Runner(ROOT, repository.folder, tmp_path / "temp", job, event, "ghs_x")
        known = {"install": installed.steps["install"], "cliptune": {"report-path": str(report)}}
        return runner.use(only="Comment on the pull request", known=known, comment="true")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 404, 500])
def test_fork_whose_token_may_not_write_keeps_its_summary(
    comment: Any, comments: Comments, status: int
) -> None:
    comments.status = status
    finished = comment(comments.url)
    assert finished.code == 0 and comments.kept == []
    assert f"::warning title=cliptune::no comment was written: HTTP {status}" in finished.log
    assert ("pull-requests: write" in finished.log) == (status != 500)


@pytest.mark.slow
def test_token_goes_nowhere_else(comment: Any, comments: Comments) -> None:
    with comments_served() as elsewhere:
        comments.status, comments.location = 302, elsewhere.url
        finished = comment(comments.url)
        assert finished.code == 0 and "HTTP 302" in finished.log
        assert elsewhere.calls == []


@pytest.mark.slow
def test_comment_without_a_place_for_it_is_passed_over(
    comment: Any, comments: Comments, tmp_path: Path
) -> None:
    for event in ({}, {"pull_request": None}, {"pull_request": {"number": "7"}}, []):
        finished = comment(comments.url, event)
        assert finished.code == 0 and "about no pull request" in finished.log
    assert comments.calls == []
    unreachable = comment(NOWHERE)
    without_report = comment(comments.url, report=tmp_path / "gone.md")
    comments.status = NO_HTTP
    for finished in (unreachable, without_report, comment(comments.url)):
        assert finished.code == 0 and "::warning title=cliptune::no comment was written" in finished.log
