"""Markdown for people who review: the body of one sticky comment, and the summary of a job.

Whatever comes from a config or a service is text in it, never markup: no mention, link, image or HTML of somebody
else's. The comment begins with a hidden marker, by which a pipeline finds and updates it instead of adding another.

Source:
    https://github.github.com/gfm/ 6.2: a character written as an entity has no meaning as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.ci.formats.texts import place, visible
from service.ci.judgement import Judgement, Severity
from service.ci.report import Report
from service.ci.sentences import number
from service.ci.tuned import Tuned

#: How a pipeline finds its comment again.
MARKER = "<!-- cliptune-check -->"
#: Bytes of a comment that GitHub takes (65,536 characters), with room for what a pipeline adds.
COMMENT_BYTES = 64_000
#: Bytes of a job's summary: of a longer one GitHub keeps nothing (1024 KiB for all of a step).
SUMMARY_BYTES = 1_000_000
#: Bytes for the table's head and for the sentence about what did not fit.
_REST_BYTES = 1000
#: Longest text of a cell, in characters.
_LONGEST = 200
#: The same of a row of a study's answer.
_LONGEST_ROW = 1000
#: All that has a meaning somewhere in Markdown or in GitHub's additions: mentions, references, emoji, formulas.
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#+!|~@:&$\"'^=/]|(?<=www)\.")
_WORDS = {Severity.OK: "ok", Severity.WARNING: "look", Severity.FAILURE: "**failed**"}
_HEADS = ("", "config", "key", "value", "recommended", "verdict")


def render(report: Report) -> str:
    """A report as the body of a comment.

    Args:
        report: what the check found.

    Returns:
        Markdown of at most `COMMENT_BYTES`, with the marker in its first line. What does not fit is counted.
    """
    return _bounded(report, f"{MARKER}\n", COMMENT_BYTES)


def render_summary(report: Report) -> str:
    """A report as the summary of a job.

    Args:
        report: what the check found.

    Returns:
        Markdown of at most `SUMMARY_BYTES`.
    """
    return _bounded(report, "", SUMMARY_BYTES)


def text(raw: str, limit: int = 2000) -> str:
    """A text that Markdown shows as it is.

    Args:
        raw: any.
        limit: longest text, in characters.

    Returns:
        The text with entities for what would be markup.

    Example:
        >>> text("a|b `c`")
        'a&#124;b &#96;c&#96;'
    """
    return _MARKUP.sub(_entity, visible(raw, limit))


def _entity(found: re.Match[str]) -> str:
    """A character as an entity; GitHub looks for mentions and references after that, so they are broken, too."""
    broken = "&#8203;" if found[0] in "@#" else ""
    return f"&#{ord(found[0])};{broken}"


def code(raw: str) -> str:
    """A text in the type of code, in which GitHub looks for no mentions and references.

    Args:
        raw: any.

    Returns:
        An element; a dash for an empty text.
    """
    return f"<code>{text(raw, _LONGEST)}</code>" if raw else "-"


@dataclass(frozen=True)
class _Entry:
    """One finding: its row of the table, its sentence below, and whether it fails the check."""

    row: str
    details: str
    fails: bool


def _bounded(report: Report, head: str, limit: int) -> str:
    """The report with as many findings as fit; the worst come first, so that the mildest are left out."""
    start = f"{head}### Gradient clipping: {report.summary}\n"
    if report.outage is not None:
        start += f"\n> {text(report.outage.sentence)}\n"
    if report.study is not None:
        start += _study(report.study)
    entries = _entries(report)
    room = limit - len(start.encode()) - _REST_BYTES
    kept: list[_Entry] = []
    for each in entries:
        room -= len(each.row.encode()) + len(each.details.encode()) + 1
        if room < 0:
            break
        kept.append(each)
    parts = [start]
    if kept:
        table = [_line(_HEADS), _line(["---"] * len(_HEADS)), *(each.row for each in kept), ""]
        parts += ["\n".join(table), "".join(each.details for each in kept)]
    left_out = entries[len(kept) :]
    if left_out:
        parts.append(
            f"{len(left_out)} more findings did not fit here, {sum(each.fails for each in left_out)} of which fail the "
            "check: the job's log and its report files have them all.\n"
        )
    return "\n".join(part for part in parts if part)


def _study(study: Tuned) -> str:
    """The study that was waited for: how it ended, and its answer row by row."""
    said = f"\n**S{text(study.subject[1:], _LONGEST)}**: {text(study.sentence)}{link(study.url)}\n"
    if not study.rows:
        return said
    rows = [_line((text(name), text(value, _LONGEST_ROW))) for name, value in study.rows]
    return f"{said}\n" + "\n".join([_line(("", "")), _line(("---", "---")), *rows]) + "\n"


def _entries(report: Report) -> list[_Entry]:
    """What fails, what could not be read, and the rest."""
    judged = [
        _Entry(_row(each), _details(each), each.severity is Severity.FAILURE) for each in report.judgements
    ]
    word = _WORDS[Severity.WARNING] if report.exit_zero else "**error**"
    refused = [
        _Entry(
            _line((word, code(place(each.file, each.line)), "-", "-", "-", text(each.code))),
            _item(place(each.file, each.line), each.sentence),
            not report.exit_zero,
        )
        for each in report.refusals
    ]
    return [*judged[: report.num_failures], *refused, *judged[report.num_failures :]]


def _row(judgement: Judgement) -> str:
    checked = judgement.checked
    verdict = f"{text(str(judgement.verdict))}{', stale' if judgement.is_stale else ''}"
    return _line(
        (
            _WORDS[judgement.severity],
            code(place(checked.file, checked.line, is_implicit=checked.is_implicit)),
            code(checked.key),
            code(checked.spelled),
            _recommended(judgement),
            verdict,
        )
    )


def _recommended(judgement: Judgement) -> str:
    use = code(judgement.recommended_spelled)
    if judgement.low is None or judgement.high is None:
        return use
    return f"{use} ({number(judgement.low)} to {number(judgement.high)})"


def _details(judgement: Judgement) -> str:
    """The sentence of a value that needs attention."""
    if judgement.severity is Severity.OK:
        return ""
    checked = judgement.checked
    where = place(checked.file, checked.line, is_implicit=checked.is_implicit)
    return _item(where, judgement.sentence, judgement.study_url)


def _item(where: str, sentence: str, url: str = "") -> str:
    return f"- {code(where)}: {text(sentence)}{link(url)}\n"


def link(url: str) -> str:
    """A link to the study's page; only to a web address.

    Args:
        url: of the page.

    Returns:
        The link in parentheses after a blank; empty for any other text.
    """
    shown = visible(url)
    if not re.fullmatch(r"https?://[!-;=?-~]+", shown):
        return ""
    target = re.sub(r"[()\\<>\"'`|\[\]*_~]", lambda found: f"%{ord(found[0]):02X}", shown)
    return f" ([study]({target}))"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
