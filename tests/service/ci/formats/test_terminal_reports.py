"""The table and the plain lines."""

from __future__ import annotations

from typing import Any

import pytest

from service.ci.formats.registry import render
from service.ci.report import Report


def columns(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def test_table_has_a_row_per_value_and_a_sentence_where_one_is_needed(reports: Any) -> None:
    text = render(reports.usual(), "table")
    table, notes, summary = text.split("\n\n")
    rows = [line.split() for line in table.splitlines()]
    assert rows == [
        ["file", "key", "value", "recommended", "verdict"],
        ["FAIL", "conf/bad.yaml:12", "max_grad_norm", "1.0", "0.28", "to", "0.45", "regression"],
        ["warn", "conf/other.yaml:12", "trainer.gr...t_clip_val", "0.5", "-", "no_recommendation"],
        ["ok", "conf/good.yaml:12", "max_grad_norm", "0.35", "0.28", "to", "0.45", "inside"],
        ["error", "conf/auto.json:7", "-", "-", "-", "auto_value"],
    ]
    places = [line for line in notes.splitlines() if not line.startswith(" ")]
    assert places == ["FAIL conf/bad.yaml:12", "warn conf/other.yaml:12", "error conf/auto.json:7"]
    assert "before clipping" in notes
    assert summary == "3 clip values checked: 1 failed, 1 to look at, 1 ok, 1 not readable.\n"
    assert columns(text) <= 120


def test_columns_line_up(reports: Any) -> None:
    lines = render(reports.usual(), "table").split("\n\n")[0].splitlines()
    starts = {line.index(word) for line, word in zip(lines[1:4], ("conf", "conf", "conf"), strict=True)}
    assert starts == {lines[0].index("file")}
    verdicts = ("regression", "no_recommendation", "inside")
    assert {line.index(word) for line, word in zip(lines[1:4], verdicts, strict=True)} == {
        lines[0].index("verdict")
    }


def test_table_of_hostile_names_is_never_wider(reports: Any) -> None:
    for text in reports.hostile:
        if text.isascii():
            assert columns(render(reports.poisoned(text), "table")) <= 120, text[:40]


def test_table_of_nothing_is_the_summary() -> None:
    assert render(Report(), "table") == "No clip value was checked.\n"


@pytest.mark.parametrize("format_name", ["table", "plain"])
def test_outage_is_told_with_its_sentence(reports: Any, format_name: str) -> None:
    text = " ".join(render(reports.usual(outage=reports.outage), format_name).replace(" | ", " ").split())
    assert "The service can't be reached, so that no clip value was judged: run the pipeline again" in text
    assert "no service answers at http://127.0.0.1:1" in text


def test_plain_lines_begin_with_what_they_mean(reports: Any) -> None:
    lines = render(reports.usual(outage=reports.outage, on_service_error="fail"), "plain").splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["failed", "failed", "warning", "ok", "error"]
    assert lines[0].endswith("[service_unreachable]")
    assert lines[1].startswith(
        "failed: conf/bad.yaml:12: max_grad_norm 1.0 is outside the recommended 0.28 to 0.45"
    )
    assert lines[1].endswith("[regression] https://cliptune.example/studies/0f5a1b2c")
    assert lines[4] == "error: conf/auto.json:7: gradient_clipping is auto. [auto_value]"
    assert lines[5] == reports.usual().summary


def test_no_plain_line_can_be_a_workflow_command(reports: Any) -> None:
    for text in reports.hostile:
        for format_name in ("plain", "table"):
            written = render(reports.poisoned(text), format_name)
            assert "##[" not in written
            assert not any(line.lstrip().startswith("::") for line in written.splitlines()), (
                format_name,
                text[:40],
            )


def test_softened_check_prints_warnings(reports: Any) -> None:
    text = render(reports.usual(exit_zero=True, outage=reports.outage, on_service_error="fail"), "plain")
    assert [line.split(":")[0] for line in text.splitlines()[:-1]] == [
        "warning",
        "warning",
        "warning",
        "ok",
        "warning",
    ]
    rows = render(reports.usual(exit_zero=True), "table").split("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["warn", "warn", "ok", "warn"]
