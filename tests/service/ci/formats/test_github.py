"""Workflow commands, read back as the runner reads them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.ci.formats.github_report import MAX_ANNOTATIONS, escape_data, escape_property
from service.ci.formats.registry import render
from service.ci.report import Refusal, report

COMMAND = re.compile(r"::(?P<kind>[a-z-]+) (?P<properties>.*?)::(?P<message>.*)")


def unescape(text: str, *, is_property: bool = False) -> str:
    """As the runner does it: the percent sign last."""
    pairs = [
        ("%0D", "\r"),
        ("%0A", "\n"),
        *([("%3A", ":"), ("%2C", ",")] if is_property else []),
        ("%25", "%"),
    ]
    for escape, character in pairs:
        text = text.replace(escape, character)
    return text


def commands(text: str) -> list[dict[str, str]]:
    """Kind, properties and message of each command."""
    found = []
    for line in text.splitlines():
        match = COMMAND.fullmatch(line)
        if match:
            properties = dict(each.split("=", 1) for each in match["properties"].split(","))
            values = {name: unescape(value, is_property=True) for name, value in properties.items()}
            found.append({"kind": match["kind"], "message": unescape(match["message"]), **values})
    return found


def test_annotations_stand_at_the_values(reports: Any) -> None:
    text = render(reports.usual(), "github")
    bad, refused, other = commands(text)
    assert (bad["kind"], bad["file"], bad["line"]) == ("error", "conf/bad.yaml", "12")
    assert bad["title"] == "clip threshold worse than recommended"
    assert bad["message"].startswith("max_grad_norm 1.0 is outside the recommended 0.28 to 0.45")
    assert bad["message"].endswith("https://cliptune.example/studies/0f5a1b2c")
    assert (refused["kind"], refused["file"], refused["line"]) == ("error", "conf/auto.json", "7")
    assert (other["kind"], other["title"]) == ("warning", "clip threshold not judged")
    # What is fine has no annotation; the counts are a plain line.
    assert text.splitlines()[-1] == reports.usual().summary
    assert len(text.splitlines()) == 4


def test_form_is_that_of_the_contract(findings: Any) -> None:
    line = render(report([findings.judged("global_norm:1", file="a,b:c.yaml")]), "github").splitlines()[0]
    assert line.startswith(
        "::error file=a%2Cb%3Ac.yaml,line=12,title=clip threshold worse than recommended::max_grad_"
    )
    assert "(95 %25 interval" in line


@pytest.mark.parametrize("text", ["%", "%25", "a\r\nb", "::x::", "a,b=c", "%0A%3A%2C", "\n%0A"])
def test_escapes_are_undone_by_the_runner(text: str) -> None:
    assert unescape(escape_data(text)) == text
    assert unescape(escape_property(text), is_property=True) == text
    assert not set(escape_property(text)) & set("\r\n:,")


def test_one_annotation_per_file(findings: Any) -> None:
    judgements = [
        findings.judged("value:1", file="a.yaml", line=3, key="first"),
        findings.judged("global_norm:1", file="a.yaml", line=9, key="second"),
        findings.judged("global_norm:0.35", file="a.yaml", line=11, key="third"),
    ]
    (only,) = commands(render(report(judgements), "github"))
    assert (only["kind"], only["line"]) == ("error", "9")
    assert [line.split()[0] for line in only["message"].splitlines()] == ["second", "first"]


@pytest.mark.parametrize(("count", "shown", "rest"), [(10, 10, 0), (11, 10, 2), (300, 10, 291)])
def test_last_annotation_speaks_for_those_that_would_be_dropped(
    reports: Any, count: int, shown: int, rest: int
) -> None:
    found = commands(render(reports.large(count), "github"))
    assert len(found) == shown <= MAX_ANNOTATIONS
    if rest:
        assert found[-1]["title"] == f"{rest} more files"
        assert found[-1]["message"].startswith(
            f"{rest} more files, of which GitHub shows no annotation: conf/00009.yaml:12, "
        )
        assert "file" not in found[-1]
    more = re.search(r" and (\d+) more$", found[-1]["message"])
    assert (more is None) if rest <= 20 else (more is not None and int(more[1]) == rest - 20)


def test_kinds_are_limited_one_by_one(reports: Any, findings: Any) -> None:
    good = [findings.judged("value:1", file=f"warn/{number}.yaml") for number in range(15)]
    bad = [findings.judged("global_norm:1", file=f"bad/{number}.yaml") for number in range(15)]
    refused = [
        Refusal(file=f"auto/{number}.yaml", line=1, code="auto_value", sentence="auto") for number in range(5)
    ]
    found = commands(render(report([*good, *bad], refusals=refused, outage=reports.outage), "github"))
    kinds = [each["kind"] for each in found]
    assert (kinds.count("error"), kinds.count("warning")) == (10, 10)
    assert [each["title"] for each in found if each["title"].endswith("more files")] == [
        "11 more files",
        "7 more files",
    ]


@pytest.mark.parametrize(("rule", "kind"), [("warn", "warning"), ("fail", "error")])
def test_outage_is_an_annotation_without_a_file(reports: Any, rule: str, kind: str) -> None:
    found = commands(render(report([], outage=reports.outage, on_service_error=rule), "github"))  # type: ignore[arg-type]
    assert [(each["kind"], each["title"]) for each in found] == [(kind, "The service can't be reached")]
    assert "file" not in found[0]


def test_no_hostile_text_forges_a_command(reports: Any) -> None:
    for text in reports.hostile:
        written = render(reports.poisoned(text), "github")
        found = commands(written)
        assert {each["kind"] for each in found} <= {"error", "warning"}
        assert {name for each in found for name in each} <= {"kind", "message", "file", "line", "title"}
        assert "##[" not in written
        # Every line is one of the commands above, or the counts.
        assert len(written.splitlines()) == len(found) + 1


def test_softened_check_has_warnings_only(reports: Any) -> None:
    found = commands(
        render(reports.usual(exit_zero=True, outage=reports.outage, on_service_error="fail"), "github")
    )
    assert [each["kind"] for each in found] == ["warning"] * 4
