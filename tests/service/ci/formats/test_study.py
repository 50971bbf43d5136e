"""The study that a tuning waited for, in every format: its answer, or why there is none."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

from service.ci.formats.outputs import outputs
from service.ci.formats.registry import FORMATS, render
from service.ci.report import Report, report
from service.ci.tuned import Ending, Tuned
from tuner.evidence import Verdict
from tuner.spec import ClipSetting

JUNIT = xmlschema.XMLSchema(Path(__file__).parents[3] / "data" / "schemas" / "junit-10.xsd")
EXIT_CODES = {
    Ending.SUCCEEDED: 0,
    Ending.FAILED: 5,
    Ending.CANCELLED: 5,
    Ending.TIMED_OUT: 4,
    Ending.INTERRUPTED: 130,
    Ending.LOST: 0,
}


def tuned(
    findings: Any, ending: Ending = Ending.SUCCEEDED, text: str = "charlm-rnn", **changes: Any
) -> Tuned:
    """A study in which 0.35 is best and 1 is in use; the text is in every place that a service fills."""
    values: dict[str, Any] = {
        "study_id": findings.study_id,
        "url": f"https://cliptune.example/v1/studies/{findings.study_id}",
        "workload": text,
        "state": "running",
        "ending": ending,
        "cause": text,
        "code": "study_failed",
        "resume": "cliptune watch 0f5a1b2c",
        "current": ClipSetting.parse("global_norm:1"),
    }
    if ending is Ending.SUCCEEDED:
        found = findings.recommendation(reason=text)
        values["recommendation"] = replace(found, workload=text, objective=text)
    return Tuned(**values | changes)


@pytest.mark.parametrize("ending", Ending)
def test_ending_decides_the_exit_code_and_what_is_said(findings: Any, ending: Ending) -> None:
    found = report([], study=tuned(findings, ending))
    assert found.exit_code == EXIT_CODES[ending]
    told = json.loads(render(found, "json"))["study"]
    assert (told["ending"], told["id"]) == (str(ending), findings.study_id)
    status = outputs(found)["status"]
    assert status == ("passed" if ending is Ending.SUCCEEDED else str(ending))
    softened = report([], study=tuned(findings, ending), exit_zero=True)
    assert softened.exit_code == (130 if ending is Ending.INTERRUPTED else 0)
    assert render(softened, "plain").startswith("ok: " if ending is Ending.SUCCEEDED else "warning: ")
    for name in ("plain", "table", "markdown", "github", "junit"):
        words = render(found, name)
        goes_on = ending in (Ending.TIMED_OUT, Ending.INTERRUPTED, Ending.LOST)
        assert ("cliptune watch 0f5a1b2c" in words) is goes_on, name


def test_a_config_that_fails_counts_before_its_study(findings: Any) -> None:
    judged = findings.judged("global_norm:1")
    assert report([judged], study=tuned(findings)).exit_code == 1
    assert outputs(report([judged], study=tuned(findings)))["verdict"] == "regression"


def test_table_and_markdown_show_the_evidence(findings: Any) -> None:
    found = report([], study=tuned(findings))
    table = " ".join(render(found, "table").replace("| ", "").split())
    assert (
        "recommended global_norm:0.35 " in table and "as good 0.28 to 0.45, in units of the gradient" in table
    )
    assert "against off global_norm:0.35 ends at a charlm-rnn 0.5 better than off (95 % interval" in table
    assert "against now global_norm:0.35 ends at a charlm-rnn 0.2 better than global_norm:1 (95 %" in table
    rows = [line.split(" | ")[0] for line in render(found, "markdown").splitlines() if line.startswith("| ")]
    assert rows == ["| ", "| ---", *(f"| {name}" for name, _ in tuned(findings).rows)]


def test_unsettled_answer_is_no_number_to_use(findings: Any) -> None:
    answer = replace(findings.recommendation(), verdict=Verdict.INCONCLUSIVE, more_seeds=None)
    found = report([], study=tuned(findings, recommendation=answer))
    told = outputs(found)
    assert (told["verdict"], told["recommended"], told["low"]) == ("inconclusive", "", "")
    document = json.loads(render(found, "json"))["study"]
    assert (document["verdict"], document["recommended"], document["low"]) == ("inconclusive", None, None)
    assert "cliptune_recommended" not in render(found, "metrics")
    # What would help is the study's to say: it may lack trials, or a metric that moves, rather than seeds.
    assert render(found, "plain").startswith(
        "warning: study 0f5a1b2c of charlm-rnn: It has not settled. The study says so. [inconclusive] "
    )


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.FAILED, Ending.TIMED_OUT])
def test_hostile_text_of_a_service_is_text(
    reports: Any, findings: Any, format_name: str, ending: Ending
) -> None:
    def written(text: str) -> str:
        study = tuned(findings, ending, text, url=f"https://cliptune.example/{text}", state=text)
        return render(Report(study=study), format_name)

    plain = written("train")
    for text in reports.hostile:
        found = written(text)
        assert all(unicodedata.category(each)[0] != "C" for each in found if each != "\n")
        if format_name != "table":
            assert found.count("\n") == plain.count("\n"), text[:50]
        for line in found.splitlines()[:-1] if format_name in ("plain", "table") else []:
            assert not line.lstrip().startswith("::") and "##[" not in line
        if format_name == "junit":
            JUNIT.validate(found)
            assert len(list(ElementTree.fromstring(found).iter("testcase"))) == 1
        if format_name in ("json", "gitlab-annotations", "gitlab-codequality"):
            json.loads(found)
