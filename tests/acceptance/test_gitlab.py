"""The GitLab components, rendered as the platform renders them, their jobs run with its variables and shells."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import xmlschema
import yaml
from jsonschema import Draft202012Validator

from service.ci.formats.outputs import outputs
from service.ci.report import Report
from service.settings import REPORTED

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "templates").glob("*/template.yml"))
SCHEMAS = ROOT / "tests" / "data" / "schemas"
NOWHERE = "http://127.0.0.1:1"
_INPUT = re.compile(r"\$\[\[ inputs\.([\w-]+) \]\]")
_TYPES = {"string": str, "boolean": bool, "number": (int, float), "array": list}


@dataclass(frozen=True)
class Component:
    """A template's two documents: what may be given, and the jobs as text."""

    inputs: Mapping[str, Mapping[str, Any]]
    jobs: str

    @classmethod
    def read(cls, path: Path) -> Component:
        header, _, jobs = path.read_text().partition("\n---\n")
        return cls(yaml.safe_load(header)["spec"]["inputs"], jobs)

    def render(self, **given: Any) -> dict[str, Any]:
        """The one job of a pipeline that includes the component with inputs.

        Raises:
            ValueError: as the pipeline would not be created.
        """
        values = {name.replace("_", "-"): value for name, value in given.items()}
        if unknown := values.keys() - self.inputs.keys():
            raise ValueError(f"unknown input {unknown}")
        for name, rule in self.inputs.items():
            if name not in values and "default" not in rule:
                raise ValueError(f"{name} is required")
            value = values.setdefault(name, rule.get("default"))
            if not isinstance(value, _TYPES[rule["type"]]):
                raise ValueError(f"{name} is no {rule['type']}")
            if value not in rule.get("options", [value]):
                raise ValueError(f"{name} is none of its options")
            if not re.search(rule.get("regex", ""), str(value)):
                raise ValueError(f"{name} does not match")
        text = _INPUT.sub(lambda found: _spelled(values[found[1]]), self.jobs)
        (job,) = yaml.safe_load(text).values()
        return dict(job)


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


CHECK, TUNE = (
    Component.read(ROOT / "templates" / name / "template.yml") for name in ("cliptune-check", "cliptune-tune")
)


@dataclass
class Ended:
    code: int
    log: str
    reports: Path

    @property
    def variables(self) -> dict[str, str]:
        """What later jobs get."""
        lines = (self.reports / "outputs.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def run(repository: Any, installed: Any, tmp_path: Path) -> Callable[..., Ended]:
    """Run a job's script in one shell, in the repository, with the environment of an image that has Python."""

    def one(job: Mapping[str, Any], shell: str = "bash", **environment: str) -> Ended:
        platform = {
            "CI": "true",
            "GITLAB_CI": "true",
            "CI_BUILDS_DIR": str(tmp_path / "builds"),
            "CI_PROJECT_DIR": str(repository.folder),
            "CI_PROJECT_PATH": "octo/nets",
            "CI_COMMIT_SHA": repository.git("rev-parse", "HEAD").strip(),
        }
        base = repository.environment
        path = f"{Path(installed.steps['install']['python']).parent}:{base['PATH']}"
        done = subprocess.run(
            [shell, "-e"],
            input="\n".join(job["script"]),
            # What the component installs is there already; nothing else is looked for.
            env={
                **base,
                "PATH": path,
                "PIP_NO_INDEX": "1",
                **platform,
                **variables(job, platform),
                **environment,
            },
            cwd=repository.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
        return Ended(done.returncode, done.stdout, repository.folder / "cliptune-report")

    return one


def variables(job: Mapping[str, Any], platform: Mapping[str, str]) -> dict[str, str]:
    """A job's variables; a plain one takes others in, one with ``expand: false`` is taken as it is."""
    found = {}
    for name, value in job["variables"].items():
        if isinstance(value, dict):
            assert value["expand"] is False
            found[name] = str(value["value"])
        else:
            found[name] = re.sub(r"\$(\w+)", lambda named: platform[named[1]], value)
    return found


# ---- what the files say ----


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_template_is_well_formed(path: Path) -> None:
    component = Component.read(path)
    assert set(_INPUT.findall(component.jobs)) == set(component.inputs), "each input is used, and no other"
    for name, rule in component.inputs.items():
        assert rule["type"] in _TYPES and rule["description"].endswith("."), name
    required = {name: "https://x.example" for name, rule in component.inputs.items() if "default" not in rule}
    job = component.render(**required)
    assert not [line for line in job["script"] if "$[[" in line]
    assert job["artifacts"]["when"] == "always"
    for kind, report in job["artifacts"]["reports"].items():
        assert any(report in line for line in job["script"]), kind


def test_components_install_the_version_that_they_belong_to() -> None:
    assert {each.inputs["version"]["default"] for each in (CHECK, TUNE)} == {version("cliptune")}


def test_backslash_of_an_input_stays_one() -> None:
    given = {"server_url": NOWHERE, "config_file": r"conf\train.yaml"}
    job = CHECK.render(**given)
    assert job["variables"]["CHECK_CONFIG_FILE"]["value"] == r"conf\train.yaml"
    assert TUNE.render(spec="s.json", **given)["variables"]["TUNE_CONFIG_FILE"]["value"] == r"conf\train.yaml"


def test_script_has_no_input_in_it() -> None:
    for component in (CHECK, TUNE):
        script = component.jobs.partition("  script:\n")[2].partition("  artifacts:\n")[0]
        assert not _INPUT.search(script), "the text of an input is no text of a script"


def test_example_gives_inputs_that_exist() -> None:
    document = yaml.safe_load((ROOT / "examples" / "gitlab" / "gitlab-ci.yml").read_text())
    document_of_test = yaml.safe_load((ROOT / "examples" / "gitlab" / "component-test.yml").read_text())
    for each in [*document["include"], *document_of_test["include"]]:
        name = re.search(r"/(cliptune-\w+)@", each["component"])
        assert name is not None
        given = {key.replace("-", "_"): value for key, value in each["inputs"].items()}
        assert {"cliptune-check": CHECK, "cliptune-tune": TUNE}[name[1]].render(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "server-url is required"),
        ({"server_url": "cliptune.example.org"}, "server-url does not match"),
        ({"server_url": NOWHERE, "fail_on": "sometimes"}, "none of its options"),
        ({"server_url": NOWHERE, "config_file": "--exit-zero"}, "config-file does not match"),
        ({"server_url": NOWHERE, "workload": 'x"\n  - rm'}, "workload does not match"),
        ({"server_url": NOWHERE, "version": "0.1 torch"}, "version does not match"),
        ({"server_url": NOWHERE, "offline": "no"}, "offline is no boolean"),
    ],
)
def test_wrong_input_makes_no_pipeline(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CHECK.render(**given)


def test_names_of_the_dotenv_report_are_known_as_such() -> None:
    written = {f"CLIPTUNE_{name.upper().replace('-', '_')}" for name in outputs(Report())}
    assert written == REPORTED, "a later job that runs cliptune would be refused for an unknown setting"
    self_test = (ROOT / "examples" / "gitlab" / "component-test.yml").read_text()
    assert set(re.findall(r"\$(CLIPTUNE_\w+)", self_test)) <= written


# ---- the jobs ----


@pytest.mark.slow
def test_bad_value_fails_the_job_and_every_report_is_there(run: Any, answered: Any) -> None:
    job = CHECK.render(server_url=answered.url, workload="digits-mlp", config_file="conf/train.yaml")
    ended = run(job, CLIPTUNE_API_KEY=answered.key)
    assert ended.code == 1, ended.log
    assert "failed: conf/train.yaml:3: max_grad_norm 0.005" in ended.log
    files = {name: ended.reports.parent / path for name, path in job["artifacts"]["reports"].items()}
    xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd").validate(files["junit"].read_text())
    findings = json.loads(files["codequality"].read_text())
    Draft202012Validator(json.loads((SCHEMAS / "gitlab-codequality.json").read_text())).validate(findings)
    assert findings[0]["location"] == {"path": "conf/train.yaml", "lines": {"begin": 3}}
    (link,) = json.loads(files["annotations"].read_text())["cliptune"]
    assert link["external_link"]["url"] == f"{answered.url}/v1/studies/{answered.study_id}"
    assert files["metrics"].read_text().endswith("# EOF\n")
    assert ended.variables["CLIPTUNE_VERDICT"] == "regression"
    # A later job has these variables and may run the check again; here its image has no bash.
    again = run(job, "sh", CLIPTUNE_API_KEY=answered.key, **ended.variables)
    assert again.code == 1 and "is no setting" not in again.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "code", "status"),
    [
        ({"server_url": NOWHERE, "on_service_error": "fail"}, 3, "unavailable"),
        ({"fail_on": "never"}, 0, "passed"),
        ({"workload": "$(touch pwned) `touch pwned` $CI_COMMIT_SHA"}, 0, "passed"),
    ],
    ids=["down and it matters", "never fails", "hostile"],
)
def test_inputs_reach_the_check(
    run: Any, answered: Any, repository: Any, given: dict[str, Any], code: int, status: str
) -> None:
    job = CHECK.render(**{"server_url": answered.url, "workload": "digits-mlp"} | given)
    ended = run(job, CLIPTUNE_API_KEY=answered.key)
    assert (ended.code, ended.variables["CLIPTUNE_STATUS"]) == (code, status), ended.log
    assert not list(repository.folder.rglob("*pwned*"))


@pytest.mark.slow
def test_config_error_ends_the_job_with_its_own_code(run: Any, repository: Any) -> None:
    # Nor do modules of the project get in the way, whatever they are called.
    for name in ("logging", "service", "tuner"):
        (repository.folder / f"{name}.py").write_text("raise SystemExit('of the project')")
    ended = run(CHECK.render(server_url=NOWHERE), CLIPTUNE_API_KEY="x", PYTHONPATH=".")
    assert ended.code == 2 and "[workload_not_named]" in ended.log
