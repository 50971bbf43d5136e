"""Plain lines, one per value: for logs, and for a terminal that is none."""

from __future__ import annotations

from service.ci.formats.texts import place, visible
from service.ci.judgement import Severity
from service.ci.report import Report

#: The first word of a line, which no file name can take the place of.
WORDS = {Severity.OK: "ok", Severity.WARNING: "warning", Severity.FAILURE: "failed"}


def render(report: Report) -> str:
    """A report as lines.

    Args:
        report: what the check found.

    Returns:
        A line per value, the worst first, and the counts.
    """
    lines = []
    if report.outage is not None:
        word = "failed" if report.on_service_error == "fail" else "warning"
        lines.append(f"{word}: {visible(report.outage.sentence)} [{visible(report.outage.code)}]")
    if report.study is not None:
        study = report.study
        lines.append(
            f"{WORDS[study.severity]}: {visible(study.subject)}: {visible(study.sentence)} "
            f"[{visible(study.verdict)}] {visible(study.url)}"
        )
    for each in report.judgements:
        checked = each.checked
        where = visible(place(checked.file, checked.line, is_implicit=checked.is_implicit))
        link = f" {visible(each.study_url)}" if each.study_url else ""
        lines.append(f"{WORDS[each.severity]}: {where}: {visible(each.sentence)} [{each.verdict}]{link}")
    for refusal in report.refusals:
        where = visible(place(refusal.file, refusal.line))
        word = "warning" if report.exit_zero else "error"
        lines.append(f"{word}: {where}: {visible(refusal.sentence)} [{visible(refusal.code)}]")
    return "\n".join([*lines, report.summary, ""])
