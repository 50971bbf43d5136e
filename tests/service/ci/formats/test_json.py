"""The JSON report: its fields, and texts as they were."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from service.ci.formats.json_report import SCHEMA_VERSION
from service.ci.formats.registry import render
from service.ci.judgement import Checked, Judgement
from service.ci.report import Report, report


def parsed(found: Report) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(render(found, "json"))
    return document


def test_report_has_the_documented_fields(reports: Any) -> None:
    document = parsed(reports.usual(outage=reports.outage))
    assert document["schema_version"] == SCHEMA_VERSION == 1
    assert document["exit_code"] == 1
    assert document["counts"] == {"failed": 1, "warnings": 1, "ok": 1, "refused": 1}
    assert document["summary"] == reports.usual().summary
    assert document["outage"]["code"] == "service_unreachable"
    assert document["refusals"] == [
        {"file": "conf/auto.json", "line": 7, "code": "auto_value", "sentence": "gradient_clipping is auto."}
    ]
    assert [each["verdict"] for each in document["judgements"]] == [
        "regression",
        "no_recommendation",
        "inside",
    ]


def test_judgement_has_every_field_of_its_class(reports: Any) -> None:
    (found,) = parsed(reports.good())["judgements"]
    names = {each.name for each in fields(Judgement)} | {each.name for each in fields(Checked)}
    assert set(found) == names - {"checked", "off_spelled", "obstacle"}
    assert (found["setting"], found["recommended"], found["value"]) == (
        "global_norm:0.35",
        "global_norm:0.35",
        0.35,
    )


def test_evidence_is_told_in_numbers(reports: Any) -> None:
    evidence = parsed(reports.usual())["judgements"][0]["evidence"]
    assert evidence["mean"] == pytest.approx(0.2)
    assert (evidence["setting"], evidence["baseline"]) == ("global_norm:1", "global_norm:0.35")
    assert (evidence["num_pairs"], evidence["is_exact"], evidence["is_fresh"]) == (3, True, False)


def test_report_of_nothing() -> None:
    document = parsed(Report())
    assert (document["outage"], document["refusals"], document["judgements"]) == (None, [], [])


def test_texts_come_back_as_they_were(reports: Any) -> None:
    for text in reports.hostile:
        document = parsed(reports.poisoned(text))
        is_valid = not any("\ud800" <= each <= "\udfff" for each in text)
        keys = {each["key"] for each in document["judgements"]}
        assert (keys == {text}) is is_valid


def test_unjudged_value_has_no_numbers(findings: Any) -> None:
    (found,) = parsed(report([findings.judged(None)]))["judgements"]
    assert (found["setting"], found["value"], found["low"], found["evidence"]) == (None, None, None, None)
