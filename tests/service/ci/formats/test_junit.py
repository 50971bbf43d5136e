"""JUnit XML against the schema of Jenkins' xUnit plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

from service.ci.formats.registry import render
from service.ci.report import Report, report
from service.ci.verdict import judge

SCHEMA = xmlschema.XMLSchema(Path(__file__).parents[3] / "data" / "schemas" / "junit-10.xsd")


def parsed(found: Report) -> ElementTree.Element:
    """The suite of a valid document."""
    text = render(found, "junit")
    SCHEMA.validate(text)
    root = ElementTree.fromstring(text.encode())
    (suite,) = root
    for name in ("tests", "failures", "errors"):
        assert root.get(name) == suite.get(name)
    return suite


def outcome(case: ElementTree.Element) -> str:
    return case[0].tag


def test_each_kind_of_finding_has_its_outcome(reports: Any) -> None:
    suite = parsed(reports.usual())
    found = {str(each.get("classname")): each for each in suite}
    assert {name: outcome(case) for name, case in found.items()} == {
        "conf/bad.yaml": "failure",
        "conf/other.yaml": "skipped",
        "conf/good.yaml": "system-out",
        "conf/auto.json": "error",
    }
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    failure = found["conf/bad.yaml"][0]
    assert (failure.get("message"), failure.get("type")) == (
        "clip threshold worse than recommended",
        "regression",
    )
    assert str(failure.text).startswith(
        "conf/bad.yaml:12: max_grad_norm 1.0 is outside the recommended 0.28 to 0.45"
    )
    assert str(failure.text).endswith("https://cliptune.example/studies/0f5a1b2c")
    assert found["conf/bad.yaml"].get("name") == "max_grad_norm"
    assert "limits another quantity" in str(found["conf/other.yaml"][0].get("message"))


@pytest.mark.parametrize(("rule", "expected"), [("fail", "error"), ("warn", "skipped")])
def test_outage_counts_only_where_it_should(reports: Any, rule: str, expected: str) -> None:
    suite = parsed(report([], outage=reports.outage, on_service_error=rule))  # type: ignore[arg-type]
    assert [outcome(each) for each in suite] == [expected]
    assert suite[0][0].get("type") == "service_unreachable"


def test_empty_report_is_valid() -> None:
    assert len(parsed(Report())) == 0


def test_warning_about_a_value_passes_with_its_sentence(findings: Any) -> None:
    found = judge(findings.checked(), findings.recommendation(), now=findings.when, fail_on="never")
    (case,) = parsed(report([found]))
    assert outcome(case) == "system-out"
    assert "is outside the recommended" in str(case[0].text)


def test_softened_check_has_no_failure(reports: Any) -> None:
    suite = parsed(reports.usual(exit_zero=True))
    assert {outcome(each) for each in suite} == {"system-out", "skipped"}


def test_hostile_text_stays_text_and_the_document_valid(reports: Any) -> None:
    for text in reports.hostile:
        suite = parsed(reports.poisoned(text))
        assert [each.tag for each in suite] == ["testcase"] * 5
        assert {child.tag for case in suite for child in case} <= {
            "failure",
            "skipped",
            "error",
            "system-out",
        }
        assert not any(len(child) for case in suite for child in case)


def test_schema_refuses_what_is_no_junit() -> None:
    for text in ("<testsuites><testcase name='x'/></testsuites>", "<testsuite name='x'/>", "<report/>"):
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            SCHEMA.validate(text)
