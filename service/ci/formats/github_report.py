"""Workflow commands of GitHub Actions: annotations on the config files.

GitHub shows 10 annotations of a kind per step and drops the rest without a word: there is one per file, and the tenth
speaks for all that follow.

Source:
    https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions, and the runner's
    ``ActionCommand`` for the escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.ci.formats.texts import place, visible
from service.ci.judgement import Judgement, Severity
from service.ci.report import Report

#: Annotations of one kind that a step may have.
MAX_ANNOTATIONS = 10
#: Places that the last annotation names.
_NAMED = 20
_KINDS = {Severity.FAILURE: "error", Severity.WARNING: "warning"}
_NOTICE = "notice"


@dataclass(frozen=True)
class _Annotation:
    """One annotation; ``file`` is empty for one about no file."""

    kind: str
    title: str
    message: str
    file: str = ""
    line: int = 1

    @property
    def command(self) -> str:
        properties = [f"title={escape_property(self.title)}"]
        if self.file:
            properties = [f"file={escape_property(visible(self.file))}", f"line={self.line}", *properties]
        return f"::{self.kind} {','.join(properties)}::{escape_data(self.message)}"


def render(report: Report) -> str:
    """A report as workflow commands, to be printed in a step.

    Args:
        report: what the check found.

    Returns:
        Errors, warnings, the answer of a study that was waited for, and the counts; values that are as they should be
        have no annotation.
    """
    annotations = [*_outage(report), *_study(report), *_judgements(report.judgements), *_refusals(report)]
    lines = [
        each.command
        for kind in ("error", "warning", _NOTICE)
        for each in _limited([one for one in annotations if one.kind == kind])
    ]
    return "\n".join([*lines, report.summary, ""])


def escape_data(text: str) -> str:
    r"""A command's message.

    Args:
        text: any.

    Returns:
        The text, with which no other command can begin.

    Example:
        >>> escape_data("100 %\n::error::x")
        '100 %25%0A::error::x'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A command's property.

    Args:
        text: any.

    Returns:
        The text, with which no other property can begin.

    Example:
        >>> escape_property("a,line=1::b")
        'a%2Cline=1%3A%3Ab'
    """
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def _outage(report: Report) -> list[_Annotation]:
    if report.outage is None:
        return []
    kind = "error" if report.on_service_error == "fail" else "warning"
    return [_Annotation(kind, visible(report.outage.title), visible(report.outage.sentence))]


def _study(report: Report) -> list[_Annotation]:
    study = report.study
    if study is None:
        return []
    kind = _KINDS.get(study.severity, _NOTICE)
    return [
        _Annotation(kind, visible(study.title), visible(f"{study.subject}: {study.sentence} {study.url}"))
    ]


def _judgements(judgements: Sequence[Judgement]) -> list[_Annotation]:
    """One annotation per file: at its worst value, with the sentences of all that need attention."""
    by_file: dict[str, list[Judgement]] = {}
    for each in judgements:
        if each.severity in _KINDS:
            by_file.setdefault(each.checked.file, []).append(each)
    return [
        _Annotation(
            _KINDS[found[0].severity],
            found[0].title,
            "\n".join(visible(f"{each.sentence} {each.study_url}".rstrip()) for each in found),
            file,
            found[0].checked.line,
        )
        for file, found in by_file.items()
    ]


def _refusals(report: Report) -> list[_Annotation]:
    kind = "warning" if report.exit_zero else "error"
    by_file = {each.file: each for each in reversed(report.refusals)}
    return [
        _Annotation(kind, "clip value not readable", visible(each.sentence), each.file, each.line)
        for each in reversed(by_file.values())
    ]


def _limited(annotations: list[_Annotation]) -> list[_Annotation]:
    """At most as many as are shown; the last one tells of the rest."""
    if len(annotations) <= MAX_ANNOTATIONS:
        return annotations
    shown, rest = annotations[: MAX_ANNOTATIONS - 1], annotations[MAX_ANNOTATIONS - 1 :]
    named = [visible(place(each.file, each.line), 200) for each in rest[:_NAMED]]
    more = f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else ""
    message = f"{len(rest)} more files, of which GitHub shows no annotation: {', '.join(named)}{more}"
    return [*shown, _Annotation(rest[0].kind, f"{len(rest)} more files", message)]
