"""GitLab's reports: code quality against its schema, dotenv, metrics and links within their rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.ci.formats.registry import render
from service.ci.report import Report, report
from service.ci.verdict import judge

SCHEMA = json.loads((Path(__file__).parents[3] / "data" / "schemas" / "gitlab-codequality.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


def findings_of(found: Report) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(render(found, "gitlab-codequality"))
    VALIDATOR.validate(document)
    return document


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for wrong in (
        {},
        [{}],
        [{"description": "x", "fingerprint": "y", "severity": "bad", "location": {"path": "z"}}],
    ):
        assert not VALIDATOR.is_valid(wrong)


def test_findings_stand_at_the_values(reports: Any) -> None:
    bad, other, refused = findings_of(reports.usual(outage=reports.outage))
    assert bad["check_name"] == "cliptune/regression"
    assert bad["severity"] == "critical"
    assert bad["location"] == {"path": "conf/bad.yaml", "lines": {"begin": 12}}
    assert bad["description"].startswith("max_grad_norm 1.0 is outside the recommended 0.28 to 0.45")
    assert (other["check_name"], other["severity"]) == ("cliptune/no_recommendation", "info")
    assert (refused["check_name"], refused["severity"]) == ("cliptune/auto_value", "major")
    assert findings_of(reports.good()) == []
    assert findings_of(Report()) == []


def test_softened_check_has_light_findings_only(reports: Any) -> None:
    assert {each["severity"] for each in findings_of(reports.usual(exit_zero=True))} == {"minor", "info"}


def test_fingerprint_stays_when_lines_and_figures_change(findings: Any) -> None:
    def fingerprint(setting: str = "global_norm:1", **changes: Any) -> str:
        (found,) = findings_of(report([findings.judged(setting, **changes)]))
        return str(found["fingerprint"])

    assert re.fullmatch("[0-9a-f]{64}", fingerprint())
    assert (
        fingerprint(line=99)
        == fingerprint("global_norm:1.1")
        == fingerprint(file="./conf/train.yaml")
        == fingerprint()
    )
    others = [
        fingerprint(file="other.yaml"),
        fingerprint(key="grad_clip"),
        fingerprint("value:1"),
        fingerprint(),
    ]
    assert len(set(others)) == 4


def test_weights_follow_what_fails(findings: Any) -> None:
    def severity(setting: str, **rules: Any) -> list[str]:
        found = judge(findings.checked(setting), findings.recommendation(), **{"now": findings.when} | rules)
        return [each["severity"] for each in findings_of(report([found]))]

    assert severity("global_norm:1") == ["critical"]
    assert severity("global_norm:0.1") == ["major"]
    assert severity("global_norm:0.1", fail_on="never") == ["minor"]
    assert severity("global_norm:0.35") == []
    later = findings.when.replace(year=2027)
    assert severity("global_norm:0.35", now=later, stale_after_days=90) == ["info"]


def test_old_recommendation_is_a_finding_of_its_own_name(findings: Any) -> None:
    later = findings.when.replace(year=2027)
    for setting, name in [("global_norm:0.35", "cliptune/stale"), ("global_norm:0.1", "cliptune/outside")]:
        found = judge(findings.checked(setting), findings.recommendation(), now=later, stale_after_days=90)
        assert findings_of(report([found]))[0]["check_name"] == name


def test_hostile_text_leaves_the_findings_valid(reports: Any) -> None:
    for text in reports.hostile:
        assert len(findings_of(reports.poisoned(text))) == 3


def variables(text: str) -> dict[str, str]:
    """A dotenv file by GitLab's rules: no quotes, no comments, no empty lines."""
    assert len(text.encode()) <= 5 * 1024
    lines = text.splitlines()
    assert len(lines) <= 20
    assert all(re.fullmatch(r"[A-Za-z0-9_]+=[!-~]*", line) for line in lines)
    return dict(line.split("=", 1) for line in lines)


def test_dotenv_tells_the_worst_value(reports: Any) -> None:
    assert variables(render(reports.usual(), "dotenv")) == {
        "CLIPTUNE_VERDICT": "regression",
        "CLIPTUNE_CURRENT": "1",
        "CLIPTUNE_RECOMMENDED": "0.35",
        "CLIPTUNE_LOW": "0.28",
        "CLIPTUNE_HIGH": "0.45",
        "CLIPTUNE_STUDY_ID": "0f5a1b2c-0000-4000-8000-000000000000",
        "CLIPTUNE_STUDY_URL": "https://cliptune.example/studies/0f5a1b2c",
        "CLIPTUNE_STATUS": "failed",
        "CLIPTUNE_NUM_FAILED": "1",
        "CLIPTUNE_NUM_WARNINGS": "1",
        "CLIPTUNE_EXIT_CODE": "1",
    }


def test_off_and_unknown_values_have_words(findings: Any) -> None:
    found = variables(render(report([findings.judged("none")]), "dotenv"))
    assert (found["CLIPTUNE_CURRENT"], found["CLIPTUNE_RECOMMENDED"]) == ("off", "0.35")
    found = variables(render(report([findings.judged(None)]), "dotenv"))
    assert (found["CLIPTUNE_CURRENT"], found["CLIPTUNE_STATUS"]) == ("", "passed")


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, "passed"), ({"outage": True}, "unavailable"), ({"refusals": True}, "refused")],
)
def test_status_says_how_it_ended(reports: Any, changes: dict[str, Any], status: str) -> None:
    given = {name: {"outage": reports.outage, "refusals": reports.usual().refusals}[name] for name in changes}
    assert variables(render(report([], **given), "dotenv"))["CLIPTUNE_STATUS"] == status


def test_no_hostile_text_reaches_a_variable(reports: Any) -> None:
    for text in reports.hostile:
        found = variables(render(reports.poisoned(text), "dotenv"))
        assert set(found) == set(variables(render(reports.usual(), "dotenv")))
        assert not set("$`'\"\\;|<>(){}") & set("".join(found.values()))
        lines = render(reports.poisoned(text), "github-output").splitlines()
        assert [line.partition("=")[0] for line in lines] == [
            name.removeprefix("CLIPTUNE_").lower().replace("_", "-") for name in found
        ]


SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (?P<value>\S+)'
)


def samples(text: str) -> list[tuple[str, float]]:
    """Name and value of each sample."""
    *lines, end = text.splitlines()
    assert end == "# EOF"
    found = []
    for line in lines:
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            found.append((match["name"], float(match["value"])))
    return found


def test_metrics_have_the_figures_by_file_and_key(reports: Any) -> None:
    text = render(reports.usual(), "metrics")
    assert 'cliptune_threshold{file="conf/bad.yaml",key="max_grad_norm"} 1' in text.splitlines()
    found = samples(text)
    assert found.count(("cliptune_recommended_low", 0.28)) == 2
    assert found.count(("cliptune_failed", 1.0)) == 1
    assert ("cliptune_exit_code", 1.0) in found
    (excess,) = [value for name, value in found if name == "cliptune_objective_excess"]
    assert excess == pytest.approx(0.2)
    assert not any(name == "cliptune_threshold" for name, _ in samples(render(Report(), "metrics")))


def test_hostile_label_stays_a_label(reports: Any) -> None:
    expected = [name for name, _ in samples(render(reports.poisoned("x"), "metrics"))]
    for text in reports.hostile:
        assert [name for name, _ in samples(render(reports.poisoned(text), "metrics"))] == expected


def test_links_lead_to_the_studies_once(reports: Any) -> None:
    document = json.loads(render(reports.large(3), "gitlab-annotations"))
    assert document == {
        "cliptune": [
            {
                "external_link": {
                    "label": "Study 0f5a1b2c: charlm-rnn",
                    "url": "https://cliptune.example/studies/0f5a1b2c",
                }
            }
        ]
    }
    assert json.loads(render(Report(), "gitlab-annotations")) == {"cliptune": []}


def test_link_is_to_the_web_only(reports: Any) -> None:
    for text in ("javascript:alert(1)", "data:text/html,x", "//evil.example", "https:evil"):
        document = json.loads(render(reports.poisoned(text), "gitlab-annotations"))
        urls = [each["external_link"]["url"] for each in document["cliptune"]]
        assert urls == [f"https://cliptune.example/{text}", "https://cliptune.example/studies/0f5a1b2c"]
