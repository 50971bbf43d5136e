"""A table for people at a terminal: a row per value, and below it the sentences of those that need attention."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable

from service.ci.formats.texts import place, visible
from service.ci.judgement import Judgement, Severity
from service.ci.report import Report
from service.ci.sentences import number
from service.ci.tuned import Tuned

#: Columns of the terminal that the table fits into.
WIDTH = 120
_HEADS = ("", "file", "key", "value", "recommended", "verdict")
_MARKS = {Severity.OK: "ok", Severity.WARNING: "warn", Severity.FAILURE: "FAIL"}
#: Widest cell of each column; together with the gaps the table is WIDTH wide.
_WIDEST = (5, 36, 24, 10, 17, 23)
_GAP = " "
#: Begins the lines of a sentence: a runner takes one that begins with two colons for a command.
_BAR = "  | "
#: Characters that take up two columns.
_WIDE = ("W", "F")


def render(report: Report) -> str:
    """A report as a table.

    Args:
        report: what the check found.

    Returns:
        Lines of at most 120 columns, without colour.
    """
    refused = _MARKS[Severity.WARNING] if report.exit_zero else "error"
    rows = [_row(each) for each in report.judgements]
    rows += [
        (refused, visible(place(each.file, each.line)), "-", "-", "-", visible(each.code))
        for each in report.refusals
    ]
    lines = list(_lines([_HEADS, *rows])) if rows else []
    notes = [] if report.outage is None else _note("", report.outage.sentence)
    if report.study is not None:
        notes += _study(report.study)
    for each in report.judgements:
        if each.severity is not Severity.OK:
            heading = f"{_MARKS[each.severity]} {_where(each)}"
            notes += _note(heading, f"{each.sentence} {each.study_url}".rstrip())
    for refusal in report.refusals:
        notes += _note(f"{refused} {place(refusal.file, refusal.line)}", refusal.sentence)
    blocks = ["\n".join(block) for block in (lines, notes, [report.summary]) if block]
    return "\n\n".join(blocks) + "\n"


def _study(study: Tuned) -> list[str]:
    """The study that was waited for: how it ended, and its answer row by row."""
    heading = _fitted(visible(f"{_MARKS[study.severity]} {study.subject}: {study.title}"), WIDTH)
    if not study.rows:
        return [heading, *_note("", f"{study.sentence} {study.url}")]
    width = max(len(name) for name, _ in study.rows)
    lines = [
        line
        for name, value in (*study.rows, ("study", study.url))
        for line in _note("", f"{name:<{width}}  {visible(value)}", indent=width + 2)
    ]
    return [heading, *lines]


def _row(judgement: Judgement) -> tuple[str, ...]:
    checked = judgement.checked
    return (
        _MARKS[judgement.severity],
        visible(_where(judgement)),
        visible(checked.key),
        visible(checked.spelled) or "-",
        _recommended(judgement),
        f"{judgement.verdict}{', stale' if judgement.is_stale else ''}",
    )


def _where(judgement: Judgement) -> str:
    checked = judgement.checked
    return place(checked.file, checked.line, is_implicit=checked.is_implicit)


def _recommended(judgement: Judgement) -> str:
    if judgement.low is None or judgement.high is None:
        return visible(judgement.recommended_spelled) or "-"
    return f"{number(judgement.low)} to {number(judgement.high)}"


def _lines(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """Rows as lines; a column is as wide as its widest cell, up to its bound."""
    short = [tuple(_fitted(cell, widest) for cell, widest in zip(row, _WIDEST, strict=True)) for row in rows]
    widths = [max(_width(row[column]) for row in short) for column in range(len(_HEADS))]
    for row in short:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        yield _GAP.join(padded).rstrip()


def _fitted(text: str, widest: int) -> str:
    """A cell cut in the middle, so that the end of a path stays readable."""
    limit = widest
    while _width(text) > widest:
        text = visible(text, limit)
        limit -= 1
    return text


def _width(text: str) -> int:
    return len(text) + sum(unicodedata.east_asian_width(each) in _WIDE for each in text if not each.isascii())


def _note(heading: str, sentence: str, indent: int = 0) -> list[str]:
    """A sentence below the table, under its place; its further lines are set in."""
    columns = WIDTH if sentence.isascii() else WIDTH // 2
    parts = textwrap.wrap(
        visible(sentence),
        columns,
        initial_indent=_BAR,
        subsequent_indent=_BAR + " " * indent,
        break_on_hyphens=False,
    )
    return [_fitted(visible(heading), WIDTH), *parts] if heading else parts
